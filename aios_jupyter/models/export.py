"""Take a published model elsewhere: to a device, into a container, to Kubernetes, to MLflow.

Each form is a folder (or a zip of it) that stands on its own. What is written is checked first: the
files are those that were published. A leaf module: it imports what a form needs when it is made.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import ConflictError, UsageError
from ..schema import Struct
from .onnx_files import EXAMPLE
from .predictor import RECIPE, file_hashes, verify
from .signing import bundles

if TYPE_CHECKING:
    from .predictor import Package, Predictor
    from .registry import ModelVersion
    from .trust import Trust

_RUNTIME = ("numpy", "onnxruntime")
_SERVER = (
    *_RUNTIME,
    "httptools",
    "msgspec",
    "orjson",
    "prometheus-client",
    "starlette",
    "uvicorn",
    "uvloop",
)
LITERT_MODEL = "model.tflite"
_SKIPPED = ("__pycache__", "labextension", "samples")


class Exported(Struct):
    """What was written: `files` below `path`, `size` bytes of them, and what to do next."""

    ref: str
    form: str
    path: str
    size: int
    files: tuple[str, ...]
    note: str


class Options(Struct):
    """Names and numbers that some forms want.

    Attributes
    ----------
    image
        The container image that Kubernetes is to run.
    replicas
        Least and most.
    base
        The image that a container is built upon.
    calibrate
        Samples to take the ranges for int8 from (LiteRT); None: it stays in float32.
    """

    image: str = ""
    replicas: tuple[int, int] = (1, 4)
    base: str = "python:3.11-slim"
    calibrate: Any = None


def export(
    ref: str,
    form: str,
    target: str | Path,
    options: Options | None = None,
    trust: Trust | None = None,
) -> Exported:
    """Write the model `ref` in a form that runs elsewhere.

    Parameters
    ----------
    form
        "edge", "litert", "container", "kubernetes" or "mlflow".
    target
        A folder that does not exist yet or is empty, or a file that ends in .zip.
    trust
        Whose signatures count, and whether one is required; by the settings where it is None.

    Raises
    ------
    UsageError
        There is no such form, or this model cannot have it.
    ConflictError
        The target is there already, the model's files were changed, or a signature does not hold.
    AccessError
        It lacks a signature that is required.
    """
    if form not in FORMS:
        raise UsageError(f"There is no form {form!r}; there are {', '.join(FORMS)}.")
    target = Path(target).expanduser()
    if target.is_file() or (target.is_dir() and any(target.iterdir())):
        raise ConflictError(f"{target} is there already; name another, or remove it.")
    from .registry import fetch, resolve

    version = resolve(ref, trust)
    package = fetch(version.ref, trust)
    verify(package)
    target.parent.mkdir(parents=True, exist_ok=True)
    aside = Path(tempfile.mkdtemp(dir=target.parent, prefix=f".{target.name}."))
    try:
        folder = aside / target.name.removesuffix(".zip")
        folder.mkdir()
        note = FORMS[form](_Export(version, package, folder, options or Options()))
        files = tuple(file_hashes(folder))
        size = _place(folder, target)
    except OSError as error:
        raise ConflictError(f"{target} cannot be written: {error.strerror}.") from error
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    return Exported(ref=version.ref, form=form, path=str(target), size=size, files=files, note=note)


def _place(folder: Path, target: Path) -> int:
    """Move what is complete to where it belongs; its bytes."""
    if target.suffix == ".zip":
        made = shutil.make_archive(os.fspath(folder), "zip", folder.parent, folder.name)
        Path(made).replace(target)
        return target.stat().st_size
    if target.is_dir():
        target.rmdir()  # it is empty
    folder.replace(target)
    return sum(path.stat().st_size for path in target.rglob("*") if path.is_file())


# --- forms -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Export:
    """What is written, and the folder that it goes into."""

    version: ModelVersion
    package: Package
    folder: Path
    options: Options


def _edge(it: _Export) -> str:
    _only_onnx(it.package)
    _copy_model(it.package, it.folder)
    main = Path(it.package.main).name
    return _with_runner(it, main, _RUNTIME)


def _with_runner(it: _Export, main: str, runtime: Sequence[str]) -> str:
    """What opens the model file `main`, beside it, and prepares rows for it where a recipe does."""
    about: dict[str, Any] = {
        "name": it.version.name,
        "version": it.version.version,
        "main": main,
        "files": file_hashes(it.folder),
        "signature": _signature(it),
        "metrics": it.version.metrics,
        "lineage": it.version.lineage,
    }
    asked = "INPUT.npy"
    if it.package.prepares:
        from .edge_recipe import NEEDS, with_recipe

        about |= with_recipe(it.package, it.folder, _alone(_open(it)).signature)
        runtime, asked = (*runtime, *NEEDS), "ROWS.csv"
    _write(it.folder / "model.json", json.dumps(about, indent=2) + "\n")
    shutil.copyfile(Path(__file__).with_name("edge_runner.py"), it.folder / "run.py")
    _write(it.folder / "requirements.txt", "".join(f"{line}\n" for line in locked(runtime)))
    return f"On the device: pip install -r requirements.txt, then python run.py {asked}"


def _litert(it: _Export) -> str:
    import numpy as np

    from .litert import CALIBRATION, LiteRtPredictor, convert, reopened
    from .onnx_files import check_same

    files = Path(it.package.path)
    _only_onnx(it.package)
    original = _open(it)
    alone = _alone(original)
    with np.load(files / EXAMPLE, allow_pickle=False) as kept:
        example = dict(kept)
    net = reopened(files, example)
    ranges = None
    if it.options.calibrate is not None:
        given = _as_the_model_takes(original, it.options.calibrate)
        ranges = {name: array[:CALIBRATION] for name, array in given.items()}
    content = convert(net, ranges)
    samples = example if ranges is None else ranges
    made, wanted = LiteRtPredictor(content, alone.signature).run(samples), alone.run(samples)
    if ranges is None:
        for name, want in wanted.items():
            check_same(want, made[name], 1)
    (it.folder / LITERT_MODEL).write_bytes(content)
    _copy_recipe(it.package, it.folder)
    note = _with_runner(it, LITERT_MODEL, ("numpy", "ai-edge-litert"))
    if ranges is not None:
        note += f"; {_kept_by_int8(wanted, made)}"
    if it.package.prepares:
        note += f"; {LITERT_MODEL} by itself takes rows that are prepared, as model.json says"
    return note


def _kept_by_int8(wanted: Mapping[str, Any], made: Mapping[str, Any]) -> str:
    """How far int8 is from the model on the samples that its ranges are from."""
    import numpy as np

    name, want = next(iter(wanted.items()))
    if want.ndim == 2 and want.shape[1] > 1:
        same = int((want.argmax(1) == made[name].argmax(1)).sum())
        return f"int8 gives the same class for {same} of the {len(want)} samples"
    apart = float(np.abs(want - made[name]).max())
    spread = float(want.max() - want.min())
    return f"int8 is at most {apart:.3g} off on the {len(want)} samples, whose answers span {spread:.3g}"


def _open(it: _Export) -> Predictor:
    from .predictor import open_package

    return open_package(it.package, threads=1)


def _alone(opened: Predictor) -> Predictor:
    """The model behind its recipe."""
    from .prepared import PreparedPredictor

    return opened.model if isinstance(opened, PreparedPredictor) else opened


def _as_the_model_takes(opened: Predictor, given: Any) -> Mapping[str, Any]:
    """Samples for the model itself: of one behind a recipe also raw rows."""
    from .predictor import named_inputs
    from .prepared import PreparedPredictor, raw_rows

    rows = raw_rows(given)
    if rows is not None and isinstance(opened, PreparedPredictor):
        return opened.prepare(rows)[1]
    return named_inputs(_alone(opened).signature, given)


def _container(it: _Export) -> str:
    _only_onnx(it.package)
    model = it.folder / "model"
    model.mkdir()
    _copy_model(it.package, model)
    plain = {
        "name": it.package.name,
        "version": it.package.version,
        "path": ".",
        "main": Path(it.package.main).name,
        "files": file_hashes(model),
        "framework": it.package.framework,
    }
    _write(model / "package.json", json.dumps(plain, indent=2) + "\n")
    source = Path(__file__).parents[1]
    shutil.copytree(
        source,
        it.folder / "app" / source.name,
        ignore=lambda _, names: [
            n for n in names if n in _SKIPPED or ("." in n and not n.endswith(".py"))
        ],
    )
    needed = (*_SERVER, "pandas") if it.package.prepares else _SERVER
    _write(it.folder / "requirements.txt", "".join(f"{line}\n" for line in locked(needed)))
    said = {"base": it.options.base, "ref": it.version.ref, "user": _USER}
    _write(it.folder / "Containerfile", _CONTAINERFILE.format(**said))
    return (
        f"Build it: podman build -t {_image(it)} {it.folder.name}; keep a token for it: "
        "podman secret create token FILE; run it: podman run -p 8080:8080 --secret "
        f"token,uid={_USER},mode=0400 {_image(it)}"
    )


_USER = 10001

_CONTAINERFILE = """\
# {ref}, served over HTTP (Open Inference Protocol v2) on port 8080.
# The token that clients must send is in the file /run/secrets/token.
ARG BASE={base}
FROM ${{BASE}}
COPY requirements.txt /tmp/requirements.txt
RUN pip install --no-cache-dir -r /tmp/requirements.txt
COPY app /app
COPY model /model
ENV PYTHONPATH=/app PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1 HOME=/tmp \\
    AIOS_ENDPOINT_TOKEN_FILE=/run/secrets/token
USER {user}:{user}
EXPOSE 8080
STOPSIGNAL SIGTERM
HEALTHCHECK CMD ["python", "-c", "import urllib.request as r; r.urlopen('http://127.0.0.1:8080/v2/health/ready')"]
ENTRYPOINT ["python", "-m", "aios_jupyter.models.serve", "--files", "/model", "--host", "0.0.0.0", "--port", "8080"]
"""


def _kubernetes(it: _Export) -> str:
    from .kubernetes import manifests

    image = _image(it)
    for name, text in manifests(it.version, image, it.options.replicas).items():
        _write(it.folder / name, text)
    return (
        f"First the image {image} (aios export {it.version.ref} --to container) and the token's "
        "secret (kserve.yaml and deployment.yaml say how); then kubectl apply -f deployment.yaml"
    )


def _mlflow(it: _Export) -> str:
    shutil.copytree(it.package.path, it.folder, dirs_exist_ok=True)
    for signature in bundles(it.version.tags)[:1]:
        _write(it.folder / "model.sig", signature)  # as OpenSSF's model signing calls it
    if it.package.prepares:
        return (
            f"MLflow's tools run the model alone, on rows that the recipe in {RECIPE} has prepared: "
            "mlflow.pyfunc.load_model(FOLDER)"
        )
    return "Any MLflow opens it: mlflow.pyfunc.load_model(FOLDER), mlflow models serve -m FOLDER"


FORMS: dict[str, Callable[[_Export], str]] = {
    "edge": _edge,
    "litert": _litert,
    "container": _container,
    "kubernetes": _kubernetes,
    "mlflow": _mlflow,
}


def _image(it: _Export) -> str:
    return it.options.image or f"{it.version.name.lower()}:{it.version.version}"


def _only_onnx(package: Package) -> None:
    if package.pickled:
        raise UsageError(
            f"{package.name}/{package.version} is not stored as ONNX, which this form needs; export "
            "it to mlflow, or publish it as ONNX."
        )


def _copy_model(package: Package, folder: Path) -> None:
    """The model's file, weights that lie beside it, and its recipe."""
    main = Path(package.path) / package.main
    for path in (main, *main.parent.glob(f"{main.name}.*")):
        shutil.copyfile(path, folder / path.name)
    _copy_recipe(package, folder)


def _copy_recipe(package: Package, folder: Path) -> None:
    if package.prepares:
        shutil.copyfile(Path(package.path) / RECIPE, folder / RECIPE)


def _signature(it: _Export) -> dict[str, Any]:
    if it.version.signature:
        return it.version.signature
    import msgspec

    signature: dict[str, Any] = msgspec.to_builtins(_open(it).signature)
    return signature


def _write(path: Path, text: str) -> None:
    path.write_text(text, "utf-8")


def locked(roots: Iterable[str]) -> list[str]:
    """Requirements with the versions that are installed here, and of all that they need."""
    from packaging.requirements import Requirement
    from packaging.utils import canonicalize_name

    found: dict[str, str] = {}
    waiting = list(roots)
    while waiting:
        name = str(canonicalize_name(waiting.pop()))
        if name in found:
            continue
        try:
            distribution = importlib.metadata.distribution(name)
        except importlib.metadata.PackageNotFoundError:
            continue  # of another platform, such as uvloop on Windows
        found[name] = distribution.version.partition("+")[0]
        for line in distribution.requires or ():
            requirement = Requirement(line)
            if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
                waiting.append(requirement.name)
    return [f"{name}=={version}" for name, version in sorted(found.items())]
