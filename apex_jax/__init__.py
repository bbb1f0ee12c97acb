"""APEX in JAX: prototype explanations for trained audio classifiers.

Modules are the namespaces: ``from apex_jax import explain`` and then
``explain.load(run)``. `docs/design.md` shows how they build on each other.
"""

__version__ = "0.1.0"
