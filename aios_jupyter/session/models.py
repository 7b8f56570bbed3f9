"""Models: `optimize`, `publish`, `promote`, `rollback`, `export` and their listings."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..broker.messages import Vouched
from ..errors import AccessError, NotFoundError
from .assets import AssetVerbs

if TYPE_CHECKING:
    from ..models.export import Exported
    from ..models.gallery import App
    from ..models.optimize import Optimized
    from ..models.registry import ModelVersion
    from ..models.signing import Signer
    from ..models.trust import Trust


class ModelVerbs(AssetVerbs):
    """A session that makes models better and publishes them."""

    def optimize(
        self,
        model: Any,
        data: Any,
        *,
        int8: bool = True,
        prune: float = 0.0,
        unstructured: bool = False,
        finetune: Any = None,
        max_loss: float = 0.005,
        calibrate: Any = None,
        score: Any = None,
    ) -> Optimized:
        """Smaller and quicker variants of a model, measured on `data`, and the one to take.

        `data` is samples, or samples and labels. It runs in this process. `models.optimize.Wish` and
        `models.optimize.optimize` have the parameters and errors; `publish` takes what this gives.
        """
        from ..models import optimize as models_optimize

        wish = models_optimize.Wish(
            int8=int8,
            prune=prune,
            unstructured=unstructured,
            finetune=finetune,
            max_loss=max_loss,
        )
        pair = data if isinstance(data, tuple) and len(data) == 2 else (data, None)
        return models_optimize.optimize(model, pair, wish, calibrate=calibrate, score=score)

    def publish(
        self,
        model: Any,
        name: str,
        *,
        alias: str | None = None,
        metrics: Mapping[str, float] | None = None,
        params: Mapping[str, Any] | None = None,
        input_example: Any = None,
        run: str | None = None,
        data: str | None = None,
        profile: Any = None,
        recipe: Any = None,
        label: str | None = None,
        allow_pickle: bool = False,
        sign: bool = False,
    ) -> ModelVersion:
        """Store a model as the next version of `name`, with where it comes from.

        `run` is the run that trained it (its metrics and parameters are recorded too), `data` the
        dataset where that is another than the run has read, or than `recipe` has made. With `sign`
        this user vouches for it with their key. `models.registry.publish` has the other parameters
        and errors.
        """
        from ..models import registry

        signer = self._signer() if sign else None
        lineage: dict[str, Any] = {"user": self.user, "notebook": self.label}
        numbers: dict[str, float] = {}
        values = dict(params or {})
        if run is not None:
            row = self._run_row(run)
            numbers |= {key: x for key, x in row["metrics"].items() if math.isfinite(x)}
            lineage |= {"run": run, "lease": row["lease"]}
            values |= {"world_size": row["world_size"], "framework": row["framework"]}
            if row["detail"].get("data"):
                lineage["data"] = ", ".join(row["detail"]["data"])
        if data is None and "data" not in lineage and isinstance(recipe, str):
            data = None if recipe.endswith(".json") else recipe
        if data is not None:
            lineage["data"] = self.data_show(data).ref
        numbers |= dict(metrics or {})
        version = registry.publish(
            model,
            name,
            alias=alias,
            metrics=numbers,
            params=values,
            input_example=input_example,
            lineage={key: value for key, value in lineage.items() if value},
            profile=profile,
            recipe=recipe,
            label=label,
            allow_pickle=allow_pickle,
            signer=signer,
        )
        return self.model(version.ref) if sign else version

    def sign_model(self, ref: str) -> ModelVersion:
        """Vouch for a version that is there, with this user's key.

        Raises
        ------
        ConflictError
            A file of it was changed.
        AccessError
            The key is on another machine.
        """
        from ..models import aliases

        aliases.sign(ref, self._signer())
        return self.model(ref)

    def verify_model(self, ref: str, *, require_signature: bool = False) -> ModelVersion:
        """A version, once its files and signatures were checked (`models.card.verify`)."""
        from ..models import card

        return card.verify(ref, self.trust(required=require_signature))

    def trust(self, *, required: bool = False) -> Trust:
        """Whose signatures count, and whether models have to be signed, also by `required`."""
        from ..models.trust import Trust, by_settings

        own = by_settings()
        told = self._call("trust.get", None, Vouched)
        return Trust(
            authorities=(told.authority, *own.authorities),
            revoked=told.revoked,
            required=own.required or told.required or required,
        )

    def _signer(self) -> Signer:
        from ..models.signing import Signer
        from ..models.trust import own_key

        if self._forward:
            raise AccessError(
                "Your key is on the machine that started this kernel, and stays there; sign the "
                "version from a shell of that machine: aios models sign NAME."
            )
        return Signer(own_key(self._bundle))

    def models(self) -> list[dict[str, Any]]:
        """All versions of all models."""
        from ..models import registry

        return registry.versions(trust=self.trust())

    def model(self, ref: str) -> ModelVersion:
        """A version by name (its newest), name/3 or name@alias.

        Raises
        ------
        NotFoundError
            There is none.
        """
        from ..models import registry

        return registry.resolve(ref, self.trust())

    def aliases(self, name: str) -> dict[str, int] | None:
        """What each alias of a model names, told at once; None where the registry is elsewhere."""
        from ..models import alias_watch
        from ..models.store import registry_uri

        return alias_watch.all_of(registry_uri(), name)

    def promote(self, ref: str, alias: str) -> ModelVersion:
        """Move an alias to a version."""
        from ..models import aliases

        return aliases.set_alias(ref, alias)

    def rollback(self, name: str, alias: str) -> ModelVersion:
        """Move an alias back to the version it named before."""
        from ..models import aliases

        return aliases.rollback(name, alias)

    def compare_models(self, first: str, second: str) -> list[dict[str, Any]]:
        """The figures of two versions, and what else differs (`models.card.compare`)."""
        from ..models import card

        return card.compare(first, second)

    def export(
        self,
        ref: str,
        to: str,
        path: str | Path,
        *,
        image: str = "",
        replicas: tuple[int, int] = (1, 4),
        calibrate: Any = None,
        require_signature: bool = False,
    ) -> Exported:
        """Write a model so that it runs elsewhere.

        `to` is "edge", "litert", "container", "kubernetes" or "mlflow". With `require_signature`
        it is one that somebody known has signed. `models.export.export` has the errors.
        """
        from ..models import export

        options = export.Options(image=image, replicas=replicas, calibrate=calibrate)
        return export.export(ref, to, path, options, self.trust(required=require_signature))

    def gallery(self) -> list[App]:
        """Applications: notebooks that train or load a model, publish it and serve it."""
        from ..models import gallery

        return gallery.apps()

    def install_app(self, name: str, to: str | Path | None = None) -> Path:
        """Write an application's notebook to a file; `models.gallery.install` has the errors."""
        from ..models import gallery

        return gallery.install(name, to)[1]

    def tag_model(self, ref: str, **tags: Any) -> ModelVersion:
        """Set tags of a version; an empty value takes one off."""
        from ..models import aliases

        return aliases.tag(ref, tags)

    def _run_row(self, run: str) -> dict[str, Any]:
        row = self.status()["runs"].get(run)
        if row is None:
            raise NotFoundError(f"There is no run {run!r}; 'aios runs' lists them.")
        return dict(row)
