"""A MODEL in training computes what it computes in a sampler, and its adapter gets the right gradients."""

from collections import deque

import pytest
import torch

from support import tiny_training
from support.composition import Shot
from support.tiny_training import adapter_for, batch_for, gradients, losses_of, network_for

FAMILIES = ("phantom", "vace", "cogvideox", "cogvideox-i2v")
SIGMA = torch.tensor([0.5, 0.8])


@pytest.mark.parametrize("family", FAMILIES)
def test_a_new_adapter_leaves_the_velocity_as_it_is(pack, model_of, family):
    batch = batch_for(pack, family)
    alone = network_for(pack, model_of(family))
    new = network_for(pack, model_of(family), adapter_for(pack, alone._model[0], trained=False))
    with torch.no_grad():
        plain, nothing = alone(batch.clean, SIGMA, batch)
        velocity, routings = new(batch.clean, SIGMA, batch)
    assert torch.equal(velocity, plain) and not nothing and len(routings) == len(alone.dit.blocks)


def with_gates(pack, model):
    """An adapter whose gates for references are so wide that they show."""
    adapter = adapter_for(pack, model, reference_heads=2)
    with torch.no_grad():
        adapter.reference_gates.fill_(100.0)
    return adapter


def test_it_computes_what_a_sampler_computes(pack, model_of):
    """With the adapter injected as the node does it, gates and names of references included."""
    import comfy.model_patcher

    lib = pack.submodule("idcrafter.backbones.identity")
    model = model_of("phantom")
    adapter = with_gates(pack, model)
    batch = batch_for(pack, "phantom", rows=1, people=2)
    network = network_for(pack, model, adapter)
    with torch.no_grad():
        velocity, _ = network(batch.clean, SIGMA[:1], batch)
        tokens = network.identity_tokens(batch)
    patcher = comfy.model_patcher.ModelPatcher(adapter, torch.device("cpu"), torch.device("cpu"))
    injected = lib.inject(model, "key", patcher, lib.Injection(), ["Ada", "Bo"])
    shot = Shot(pack, "phantom")
    process_out = model.model.process_latent_out
    values = {
        "time_dim_concat": process_out(batch.conds["time_dim_concat"]),
        "idcrafter_reference_names": ["Ada", "Bo"],
    }
    shot.positive = lib.attach_subjects([[batch.context, values]], "key", tokens[0], batch.photos[0], ["Ada", "Bo"])
    seen = []

    def catch(apply_model, args):
        seen.append(apply_model(batch.clean, SIGMA[:1], **args["c"]))
        return seen[-1]

    injected.set_model_unet_function_wrapper(catch)
    with torch.inference_mode():
        shot.custom(injected, "BasicGuider", conditioning=shot.positive)
    expected = (batch.clean - seen[0]) / SIGMA[0]
    torch.testing.assert_close(velocity, expected, rtol=1e-4, atol=1e-4)
    without = network_for(pack, model, adapter)
    nameless = batch_for(pack, "phantom", rows=1, people=2, references=())
    with torch.no_grad():
        assert not torch.allclose(without(batch.clean, SIGMA[:1], nameless)[0], velocity, atol=1e-3)


def numeric(pack, network, batch, parameter, direction, step):
    """The loss's slope along a direction in the space of one parameter."""
    ends = []
    for sign in (1, -1):
        with torch.no_grad():
            parameter.add_(direction, alpha=sign * step)
            ends.append(float(losses_of(pack, network, batch)["loss"]))
            parameter.sub_(direction, alpha=sign * step)
    return (ends[0] - ends[1]) / (2 * step)


@pytest.mark.parametrize(
    ("name", "step"),
    [("adapter.reference_gates", 2.0), ("adapter.perceiver_cross_attention.1.to_out.weight", 1e-2)],
)
def test_gradients_are_the_slopes_of_the_loss(pack, model_of, name, step):
    model = model_of("phantom")
    network = network_for(pack, model, with_gates(pack, model))
    batch = batch_for(pack, "phantom")
    gradient = gradients(pack, network, batch)[name]
    direction = gradient / gradient.norm()
    slope = numeric(pack, network, batch, network.get_parameter(name), direction, step)
    assert gradient.norm() > 1e-5
    assert slope == pytest.approx(float(gradient.norm()), rel=0.02)


@pytest.mark.parametrize("family", ["phantom", "cogvideox"])
def test_who_is_not_there_does_not_matter(pack, model_of, family):
    """Padding of subjects and photos, and a batch against its rows."""
    model = model_of(family)
    network = network_for(pack, model, adapter_for(pack, model))
    batch = batch_for(pack, family)
    wide = torch.nn.functional.pad
    faces, (maps,), photos = batch.faces, batch.maps, batch.photos
    padded = batch_for(
        pack,
        family,
        faces=wide(faces, (0, 0, 0, 1, 0, 2), value=7.0),
        maps=(wide(maps, (0, 0, 0, 0, 0, 1, 0, 2), value=7.0),),
        photos=wide(photos, (0, 1, 0, 2)),
    )
    with torch.no_grad():
        expected, _ = network(batch.clean, SIGMA, batch)
        found, routings = network(padded.clean, SIGMA, padded)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    assert not routings[0].weights[..., 3:].any()


def test_other_nodes_wrappers_run(pack, model_of):
    """What another pack prepares for a run of a sampler and reads in the model's call."""
    import comfy.patcher_extension

    types = comfy.patcher_extension.WrappersMP
    model = model_of("phantom")
    seen = []

    def outer(executor, noise, latent_image, *args, **kwargs):
        executor.class_obj.model_options["transformer_options"]["mine"] = float(
            executor.class_obj.conds["positive"] != []
        )
        return executor(noise, latent_image, *args, **kwargs)

    def inner(executor, x, timestep, context, clip_fea, time_dim_concat, transformer_options, **kwargs):
        seen.append(transformer_options["mine"])
        return executor(x, timestep, context, clip_fea, time_dim_concat, transformer_options, **kwargs)

    model.add_wrapper_with_key(types.OUTER_SAMPLE, "other", outer)
    model.add_wrapper_with_key(types.DIFFUSION_MODEL, "other", inner)
    batch = batch_for(pack, "phantom")
    network_for(pack, model, adapter_for(pack, model))(batch.clean, SIGMA, batch)
    assert seen == [1.0] and "mine" not in model.model_options["transformer_options"]


def test_core_is_left_as_it_was(pack, model_of):
    import comfy.model_management

    network = network_for(pack, model_of("phantom"))
    assert comfy.model_management.in_training is False
    with pytest.raises(RuntimeError):
        network(torch.zeros(1, 3, 2, 2, 2), SIGMA[:1], batch_for(pack, "phantom", rows=1))
    assert comfy.model_management.in_training is False


def test_a_model_that_predicts_something_else_is_refused(pack, model_of):
    import comfy.model_sampling

    class Sampling(comfy.model_sampling.ModelSamplingDiscrete, comfy.model_sampling.EPS):
        pass

    model = model_of("phantom")
    model.add_object_patch("model_sampling", Sampling())
    with pytest.raises(ValueError, match="neither trained by flow matching"):
        network_for(pack, model)


def test_routings_say_where(pack, model_of):
    model = model_of("phantom")
    network = network_for(pack, model, adapter_for(pack, model))
    batch = batch_for(pack, "phantom")
    _, routings = network(batch.clean, SIGMA, batch)
    assert isinstance(routings, list) and not isinstance(routings, deque)
    assert all(routing.grid == (3, 3, 4) for routing in routings)
    assert routings[0].logits.shape == (2, tiny_training.TOKENS, 4)
