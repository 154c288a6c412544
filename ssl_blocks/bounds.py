"""Numbers with bounds, for signatures and configurations alike: beyond what is sensible, below what never ends."""

from typing import Annotated

from annotated_types import Ge, Gt, Le, Lt

MOST_INT, MOST_FLOAT = 2**31 - 1, 10**12

Count = Annotated[int, Gt(0), Le(MOST_INT)]
Whole = Annotated[int, Ge(0), Le(MOST_INT)]
Seed = Annotated[int, Ge(0), Le(2**63 - 1)]
Batch = Annotated[int, Gt(0), Le(2**24)]
Processes = Annotated[int, Gt(0), Le(2**16)]
Parts = Annotated[int, Gt(0), Le(2**20)]
Epochs = Annotated[int, Gt(0), Le(10**6)]
Workers = Annotated[int, Ge(0), Le(1024)]
Depth = Annotated[int, Gt(0), Le(1000)]
Heads = Annotated[int, Gt(0), Le(1024)]
Width = Annotated[int, Gt(0), Le(2**20)]
Classes = Annotated[int, Gt(0), Le(2**24)]
Channels = Annotated[int, Gt(0), Le(1024)]
Pixels = Annotated[int, Gt(0), Le(2**15)]
Tokens = Annotated[int, Gt(0), Le(2**12)]
Clusters = Annotated[int, Gt(0), Le(2**16)]
Crops = Annotated[int, Ge(0), Le(100)]
Times = Annotated[int, Gt(0), Le(1024)]
Share = Annotated[float, Ge(0), Le(1)]
Dropped = Annotated[float, Ge(0), Lt(1)]
Number = Annotated[float, Ge(-MOST_FLOAT), Le(MOST_FLOAT)]
Positive = Annotated[float, Gt(0), Le(MOST_FLOAT)]
NotNegative = Annotated[float, Ge(0), Le(MOST_FLOAT)]
Bytes = Annotated[int, Gt(0), Le(2**50)]
Gigabytes = Annotated[float, Gt(0), Le(2**20)]
Span = Annotated[float, Ge(0), Le(10**6)]
Rate = Annotated[float, Gt(0), Le(10**6)]
Decay = Annotated[float, Ge(0), Le(10**6)]
MlpRatio = Annotated[float, Gt(0), Le(1024)]
