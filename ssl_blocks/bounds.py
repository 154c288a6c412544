"""Numbers with bounds, for signatures and configurations alike: beyond what is sensible, below what never ends."""

from typing import Annotated

from annotated_types import Ge, Gt, Le, Lt

MOST_INT, MOST_FLOAT = 2**31 - 1, 10**12

Count = Annotated[int, Ge(1), Le(MOST_INT)]
Whole = Annotated[int, Ge(0), Le(MOST_INT)]
Seed = Annotated[int, Ge(0), Le(2**63 - 1)]
Batch = Annotated[int, Ge(1), Le(2**24)]
Epochs = Annotated[int, Ge(1), Le(10**6)]
Workers = Annotated[int, Ge(0), Le(1024)]
Depth = Annotated[int, Ge(1), Le(1000)]
Heads = Annotated[int, Ge(1), Le(1024)]
Width = Annotated[int, Ge(1), Le(2**20)]
Classes = Annotated[int, Ge(1), Le(2**24)]
Channels = Annotated[int, Ge(1), Le(1024)]
Pixels = Annotated[int, Ge(1), Le(2**15)]
Tokens = Annotated[int, Ge(1), Le(2**12)]
Clusters = Annotated[int, Ge(1), Le(2**16)]
Crops = Annotated[int, Ge(0), Le(100)]
Share = Annotated[float, Ge(0), Le(1)]
Dropped = Annotated[float, Ge(0), Lt(1)]
Positive = Annotated[float, Gt(0), Le(MOST_FLOAT)]
NotNegative = Annotated[float, Ge(0), Le(MOST_FLOAT)]
Rate = Annotated[float, Gt(0), Le(10**6)]
Decay = Annotated[float, Ge(0), Le(10**6)]
MlpRatio = Annotated[float, Gt(0), Le(1024)]
