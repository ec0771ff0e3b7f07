"""The programs of the SGLang paper in the language, told of in docs/programs.md."""
