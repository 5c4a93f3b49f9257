"""curves.png: how loss, reward and response length went."""

from pathlib import Path

from log import Line, read_lines

CURVES = (
    ("sft", ("sft/loss", "valid/loss"), "SFT loss"),
    ("rl", ("reward/mean", "rollout/truncated"), "reward"),
    ("rl", ("rollout/response_tokens",), "response tokens"),
    ("rl", ("rollout/kl", "actor/kl_to_old", "actor/kl_to_ref"), "KL divergence"),
    ("rl", ("actor/entropy",), "entropy"),
    ("rl", ("critic/explained_variance",), "critic: explained variance"),
)
"""Stage, metrics and title of each panel."""


def draw_curves(metrics: Path, picture: Path) -> None:
    """Draw the file ``metrics`` as ``picture``; a panel without data stays empty."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    lines = list(read_lines(metrics))
    figure, panels = pyplot.subplots(2, 3, figsize=(13, 7), layout="constrained")
    for panel, (stage, names, title) in zip(panels.flat, CURVES, strict=True):
        for name in names:
            points = curve(lines, stage, name)
            if points:
                panel.plot(list(points), list(points.values()), label=name, linewidth=1.2)
        panel.set_title(title)
        panel.set_xlabel(f"{stage} step")
        panel.grid(alpha=0.3)
        if len(panel.lines) > 1:
            panel.legend()
    whole = picture.with_suffix(".tmp.png")
    figure.savefig(whole, dpi=110)
    pyplot.close(figure)
    whole.replace(picture)


def curve(lines: list[Line], stage: str, name: str) -> dict[int, float]:
    """Return the metric ``name`` of ``stage`` by step."""
    return {line["step"]: line[name] for line in lines if line["stage"] == stage and name in line}
