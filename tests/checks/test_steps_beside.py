"""What stands beside a loss: other losses, targets, averages, optimizers around optimizers."""

import copy

import pytest

from pytest_gradcheck import Training, check_step

torch = pytest.importorskip("torch")
nn, F = torch.nn, torch.nn.functional


def layers(inputs, outputs):
    return nn.Sequential(nn.Linear(inputs, 16), nn.Tanh(), nn.Linear(16, outputs))


def told(result, code):
    return next((f for f in result.findings if f.code == code), None)


# --- gradients of another loss -------------------------------------------------------------------


def adversarial(is_random, zeroed):
    """Two networks; the discriminator is zeroed before its own backward, or never."""

    def training():
        torch.manual_seed(0)
        critic, maker = layers(4, 1), nn.Linear(2, 4)
        opts = [torch.optim.Adam(m.parameters(), 1e-3) for m in (critic, maker)]

        def made(batch):
            return maker(torch.randn(len(batch), 2) if is_random else batch[:, :2])

        def of_critic(batch):
            fake = made(batch).detach()
            return F.softplus(-critic(batch)).mean() + F.softplus(critic(fake)).mean()

        def of_maker(batch):
            return F.softplus(-critic(made(batch))).mean()

        def step(batch):
            if zeroed:
                opts[0].zero_grad()
            of_critic(batch).backward()
            opts[0].step()
            opts[1].zero_grad()
            of_maker(batch).backward()
            opts[1].step()

        return Training(
            step=step,
            loss=[of_critic, of_maker],
            batches=[torch.randn(n, 4) for n in (16, 16, 5)],
            model=nn.ModuleList([critic, maker]),
            optimizer=opts,
        )

    return training


@pytest.mark.parametrize("is_random", [False, True])
def test_a_gradient_that_another_loss_left_there(is_random):
    right = check_step(adversarial(is_random, True))
    assert right.verdict == "pass", right.headline
    wrong = check_step(adversarial(is_random, False))
    assert "on top of the ones before: they are not zeroed" in wrong.headline


def delayed(fault):
    """An actor that is trained in every second call."""

    def training():
        torch.manual_seed(0)
        critic, actor = layers(6, 1), nn.Linear(4, 2)
        opts = [torch.optim.Adam(m.parameters(), 1e-3) for m in (critic, actor)]
        count = [0]

        def of_critic(batch):
            return F.mse_loss(critic(torch.cat(batch[:2], 1)), batch[2])

        def of_actor(batch):
            return -critic(torch.cat([batch[0], actor(batch[0])], 1)).mean()

        def step(batch):
            opts[0].zero_grad()
            of_critic(batch).backward()
            opts[0].step()
            count[0] += 1
            if count[0] % 2 == 0:
                if fault != "not zeroed":
                    opts[1].zero_grad()
                (of_actor(batch) / (2 if fault == "half" else 1)).backward()
                opts[1].step()

        def draw(n):
            return torch.randn(n, 4), torch.randn(n, 2), torch.randn(n, 1)

        return Training(
            step=step,
            loss=[of_critic, of_actor],
            batches=[draw(n) for n in (16, 16, 5)],
            model=nn.ModuleList([critic, actor]),
            optimizer=opts,
        )

    return training


@pytest.mark.parametrize(
    ("fault", "said"),
    [("", ""), ("not zeroed", "are not zeroed"), ("half", "received 0.5 times the right gradient")],
)
def test_a_gradient_at_its_own_moment_is_named_exactly(fault, said):
    result = check_step(delayed(fault))
    assert (result.verdict == "pass") == (not fault), result.headline
    assert said in result.headline


# --- targets and averages ------------------------------------------------------------------------


class Valued(nn.Module):
    def __init__(self):
        super().__init__()
        self.online = layers(4, 3)
        self.target = copy.deepcopy(self.online)


def value_loss(model, batch):
    state, action, reward, after = batch
    with torch.no_grad():
        wanted = reward + 0.9 * model.target(after).max(1).values
    return F.smooth_l1_loss(model.online(state).gather(1, action[:, None])[:, 0], wanted)


def valued(follow, *, trains=lambda model: model.online.parameters(), is_frozen=False):
    def training():
        torch.manual_seed(0)
        model = Valued()
        model.target.requires_grad_(not is_frozen)
        opt = torch.optim.SGD(trains(model), 1e-2, momentum=0.9, weight_decay=1e-2)
        count = [0]

        def step(batch):
            opt.zero_grad()
            value_loss(model, batch).backward()
            opt.step()
            count[0] += 1
            follow(model, count[0])

        def draw(n):
            return torch.randn(n, 4), torch.randint(3, (n,)), torch.randn(n), torch.randn(n, 4)

        batches = [draw(n) for n in (16, 16, 16, 5)]
        return Training(step=step, loss=value_loss, batches=batches, model=model, optimizer=opt)

    return training


def softly(model, _):
    with torch.no_grad():
        for p, q in zip(model.target.parameters(), model.online.parameters(), strict=True):
            p.lerp_(q, 0.01)


def at_times(model, count):
    if count % 3 == 0:
        model.target.load_state_dict(model.online.state_dict())


def never(model, _):
    return


@pytest.mark.parametrize("follow", [softly, at_times, never])
def test_a_target_that_nobody_froze_is_no_fault(follow):
    result = check_step(valued(follow))
    assert result.verdict == "pass", result.headline
    found = told(result, "step-not-registered")
    assert (found.severity, found.where) == ("warn", "target.0.weight")


def test_an_average_that_an_optimizer_holds_and_leaves_alone_is_no_fault():
    result = check_step(valued(softly, trains=lambda m: m.parameters(), is_frozen=True))
    assert result.verdict == "pass", result.headline
    assert told(result, "step-frozen-moved").severity == "warn"


def test_what_to_say_of_an_average_that_is_claimed_frozen():
    result = check_step(valued(softly, is_frozen=True), frozen="target.*")
    assert "target.0.weight is claimed as frozen, and moves outside" in result.headline
    assert "leave it out of frozen= if it is an average" in result.advice[0]


@pytest.mark.parametrize("follow", [softly, at_times])
def test_an_average_that_is_copied_the_wrong_way(follow):
    def swapped(model, count):
        follow(model, count)
        model.online.load_state_dict(model.target.state_dict())

    result = check_step(valued(swapped))
    assert result.verdict == "fail"
    assert told(result, "step-written").severity == "fail"


# --- a model that changes on the way -------------------------------------------------------------


def test_a_head_that_is_made_on_the_way_is_told():
    def training():
        torch.manual_seed(0)
        model = layers(8, 1)
        opt = torch.optim.SGD(model.parameters(), 1e-2)
        count = [0]

        def loss(batch):
            return F.mse_loss(model(batch[0]), batch[1])

        def step(batch):
            count[0] += 1
            if count[0] == 3:
                model[2] = nn.Linear(16, 1)
                opt.param_groups[0]["params"] = list(model.parameters())
            opt.zero_grad()
            loss(batch).backward()
            opt.step()

        batches = [(torch.randn(n, 8), torch.randn(n, 1)) for n in (16, 16, 16, 5)]
        return Training(step=step, loss=loss, batches=batches, model=model, optimizer=opt)

    result = check_step(training)
    assert result.verdict == "pass", result.headline
    assert "2.weight is another tensor after call 3" in told(result, "step-replaced").message
    assert told(result, "step-sharpness") is None
    assert told(result, "step-too-long") is None


# --- an optimizer around another -----------------------------------------------------------------


class Sharpness(torch.optim.Optimizer):
    """SAM as its README uses it: two steps, of which the second calls the optimizer inside."""

    def __init__(self, params, inner, rho=0.05, **more):
        super().__init__(params, {"rho": rho, **more})
        self.base_optimizer = inner(self.param_groups, **more)
        self.param_groups = self.base_optimizer.param_groups

    def _held(self):
        return [p for group in self.param_groups for p in group["params"]]

    @torch.no_grad()
    def first_step(self):
        size = torch.stack([p.grad.norm() for p in self._held()]).norm()
        for p in self._held():
            self.state[p]["old"] = p.detach().clone()
            p.add_(p.grad, alpha=0.05 / float(size))
        self.zero_grad()

    @torch.no_grad()
    def second_step(self):
        for p in self._held():
            p.data = self.state[p]["old"]
        self.base_optimizer.step()
        self.zero_grad()


@pytest.mark.parametrize("factor", [1, 2])
def test_an_optimizer_that_leaves_the_step_to_the_one_inside(factor):
    def training():
        torch.manual_seed(0)
        model = layers(8, 1)
        opt = Sharpness(model.parameters(), torch.optim.SGD, lr=0.1, momentum=0.9)

        def loss(batch):
            return F.mse_loss(model(batch[0]), batch[1])

        def step(batch):
            loss(batch).backward()
            opt.first_step()
            (factor * loss(batch)).backward()
            opt.second_step()

        batches = [(torch.randn(n, 8), torch.randn(n, 1)) for n in (16, 16, 5)]
        return Training(step=step, loss=loss, batches=batches, model=model, optimizer=opt)

    result = check_step(training)
    if factor == 1:
        assert (result.verdict, told(result, "step-perturbed").severity) == ("pass", "warn")
    else:
        assert result.verdict == "fail"


# --- windows that are counted from 0 -------------------------------------------------------------


@pytest.mark.parametrize("claims", [{}, {"accumulate": 2}])
def test_a_window_that_is_counted_from_zero(claims):
    def training(first=0):
        torch.manual_seed(0)
        model = layers(8, 1)
        opt = torch.optim.AdamW(model.parameters(), 1e-3)
        count = [first]

        def loss(batch):
            return F.mse_loss(model(batch[0]), batch[1])

        def step(batch):
            (loss(batch) / 2).backward()
            if count[0] % 2 == 0:
                opt.step()
                opt.zero_grad()
            count[0] += 1

        batches = [(torch.randn(16, 8), torch.randn(16, 1)) for _ in range(4)]
        return Training(step=step, loss=loss, batches=batches, model=model, optimizer=opt)

    wrong = check_step(training, **claims)
    assert "the first update comes after 1 call of the step" in wrong.headline
    right = check_step(lambda: training(1), **claims)
    assert right.verdict == "pass", right.headline


@pytest.mark.parametrize("claims", [{}, {"accumulate": 2}, {"accumulate": 4}])
def test_batches_that_a_step_gathers_first_are_calls_of_its_window(claims):
    def training():
        torch.manual_seed(0)
        model = layers(8, 1)
        opt = torch.optim.AdamW(model.parameters(), 1e-3)
        waiting = []

        def loss(batch):
            return F.mse_loss(model(batch[0]), batch[1])

        def step(batch):
            waiting.append(batch)
            if len(waiting) == 2:
                opt.zero_grad()
                rows = sum(len(x) for x, _ in waiting)
                for each in waiting:
                    (loss(each) * len(each[0]) / rows).backward()
                opt.step()
                waiting.clear()

        batches = [(torch.randn(n, 8), torch.randn(n, 1)) for n in (16, 5, 16, 7)]
        return Training(step=step, loss=loss, batches=batches, model=model, optimizer=opt)

    result = check_step(training, **claims)
    if claims == {"accumulate": 4}:
        assert "update 1 comes after 2 calls of the step, where 4 are claimed" in result.headline
    else:
        assert result.verdict == "pass", result.headline
        assert told(result, "step-window") is None
