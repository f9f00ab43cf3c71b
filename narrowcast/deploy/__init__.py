"""From a recipe to a running board: compile, publish, flash, profile, report; whatever is done already is kept.

::

    from narrowcast.deploy import DeployOptions, deploy

    deployment = deploy("recipe.toml", DeployOptions(key=key))

``docs/deploy.md`` tells what each stage looks at before it does anything again.
"""

from narrowcast.deploy.run import DeployOptions, deploy
from narrowcast.deploy.stages import STAGES, Deployment, Observer, StageResult

__all__ = ["STAGES", "DeployOptions", "Deployment", "Observer", "StageResult", "deploy"]
