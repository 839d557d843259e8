from interp.cli.command_list import COMMANDS as COMMANDS
from interp.cli.command_list import build_command as build_command
from interp.cli.entry_point import main as main
from interp.cli.errors import report_errors_and_exit as report_errors_and_exit
from interp.cli.options import replace_settings as replace_settings
