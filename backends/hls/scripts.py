"""The Tcl that Vitis HLS runs: simulate with golden vectors, synthesize, export IP."""

from __future__ import annotations

from .parts import Part

PROJECT = "project"
SOLUTION = "solution"


def build_script(top: str, part: Part, clock: float) -> str:
    """`build.tcl`. clock: MHz."""
    flags = "-std=c++14 -I."
    return "\n".join(
        [
            "# Written by tersor. vitis_hls -f build.tcl, or vitis-run --mode hls --tcl build.tcl",
            f"open_project -reset {PROJECT}",
            f"set_top {top}",
            f'add_files {top}.cpp -cflags "{flags}"',
            f'add_files -tb testbench.cpp -cflags "{flags}"',
            "add_files -tb golden.txt",
            f"open_solution -reset {SOLUTION} -flow_target vivado",
            f"set_part {{{part.number}}}",
            f"create_clock -period {1000 / clock:.3f} -name default",
            "csim_design",
            "csynth_design",
            "export_design -format ip_catalog",
            "exit",
            "",
        ]
    )
