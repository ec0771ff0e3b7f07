"""Our engine as a DSPy language model, by the engine contract of DSPy 3.4.

    import dspy
    from lang.backends.dspy_engine import DSPyEngine

    with DSPyEngine(make_engine(EngineConfig(model="tiny"))) as engine:
        dspy.configure(lm=dspy.LM("radixlab/tiny", engine=engine, async_engine=engine.asynchronous, cache=False))

Importing this imports dspy.
"""

from lang.backends.dspy_engine.engine import AsyncDSPyEngine, DSPyEngine

__all__ = ["AsyncDSPyEngine", "DSPyEngine"]
