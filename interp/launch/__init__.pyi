from interp.launch.options import LaunchConfig as LaunchConfig
from interp.launch.recovery import Recovery as Recovery
from interp.launch.worker import Worker as Worker
