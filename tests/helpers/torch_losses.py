"""The losses of docs/method.md, section 3, written with PyTorch's own: nothing is shared with `training.losses`.

Features have the fields of `converters.torch_model.TorchFeatures`.
"""

import torch
import torch.nn.functional as F

ENCODERS = ("fusion", "av", "va")


def bce(logits, labels, positive_weight=1.0):
    weight = 1 + (positive_weight - 1) * labels
    return F.binary_cross_entropy_with_logits(logits, labels, weight, reduction="sum") / weight.sum()


def info_nce(grid):
    """Cross-entropy of every row and of every column, whose class is its own index."""
    classes = torch.arange(grid.shape[1]).repeat(len(grid))
    rows, columns = grid.flatten(0, 1), grid.mT.flatten(0, 1)
    return (F.cross_entropy(rows, classes) + F.cross_entropy(columns, classes)) / 2


def token_info_nce(video, audio, temperature=0.1):
    steps, time = audio.shape[2], video.shape[2]
    of_frame = [[s for s in range(steps) if s * time // steps == t] for t in range(time)]
    audio = torch.stack([audio[:, :, chosen].mean(2) for chosen in of_frame], dim=2)
    video, audio = ((x - x.mean((0, 1))).flatten(2) for x in (video, audio))
    return info_nce(F.cosine_similarity(video[:, :, None], audio[:, None], dim=-1) / temperature)


def relation_kl(teacher, student, temperature, clamp=False):
    """(layers,). A masked logit is −inf in both; its term is 0·(−inf + inf), which counts as 0."""
    if clamp:
        teacher, student = teacher.clamp(min=1e-5), student.clamp(min=1e-5)
    teacher, student = ((x / temperature).log_softmax(-1) for x in (teacher, student))
    terms = F.kl_div(student, teacher, reduction="none", log_target=True).nan_to_num(nan=0.0)
    return temperature**2 * terms.flatten(1).mean(1)


def mtd_terms(student, teacher, temperature, clamp_va):
    """CAD and VR: {"attention" | "value": {encoder: (layers,)}}."""
    return {
        kind: {
            name: relation_kl(
                getattr(teacher, f"{kind}_logits")[name],
                getattr(student, f"{kind}_logits")[name],
                temperature,
                clamp_va and kind == "attention" and name == "va",
            )
            for name in ENCODERS
        }
        for kind in ("attention", "value")
    }


def mtd_loss(logits, labels, student, teacher, weights, temperature=1.0, clamp_va=True):
    terms = mtd_terms(student, teacher, temperature, clamp_va)
    layers = [terms["attention"][name] + terms["value"][name] for name in ENCODERS]
    losses = torch.cat([bce(logits, labels)[None], *layers])
    return (losses / (2 * weights**2) + (1 + weights**2).log()).sum(), terms


def fixed_weight_mtd(terms, layers, weight):
    chosen = [(name, layer - 1) for name, numbers in layers.items() for layer in numbers]
    return weight * sum(of[name][layer] for of in terms.values() for name, layer in chosen)


def minilm(student, teacher, temperature=1.0):
    terms = mtd_terms(student, teacher, temperature, False)
    return terms["attention"]["fusion"][-1] + terms["value"]["fusion"][-1]


def kd(student, teacher, temperature):
    log_student, probabilities = (student / temperature).log_softmax(0), (teacher / temperature).softmax(0)
    return F.kl_div(log_student, probabilities, reduction="sum") * temperature**2 / len(student)


def rkd(student, teacher):
    def distances(x):
        found = torch.cdist(x, x, compute_mode="donot_use_mm_for_euclid_dist")
        return found / found[found > 0].mean()

    def cosines(x):
        unit = F.normalize(x[None] - x[:, None], dim=2)
        return unit @ unit.mT

    pairs, triplets = (F.smooth_l1_loss(of(student), of(teacher)) for of in (distances, cosines))
    return 25 * pairs + 50 * triplets


def fitnet(student, teacher, maps):
    return 100 * sum(
        F.mse_loss(
            getattr(student, f"{name}_tokens"),
            F.linear(getattr(teacher, f"{name}_tokens"), maps[name]["kernel"].mT, maps[name]["bias"]),
        )
        for name in ENCODERS
    )
