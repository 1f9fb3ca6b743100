package cli

import (
	"fmt"

	"github.com/docker/cli/cli/streams"
)

// progress shows one line that changes, on a terminal; elsewhere nothing.
type progress struct {
	out *streams.Out
	on  bool
}

func newProgress(out *streams.Out) *progress { return &progress{out: out, on: out.IsTerminal()} }

// Carriage return, and erase to the end of the line (ECMA-48 EL).
const eraseLine = "\r\x1b[K"

func (p *progress) show(line string) {
	if p.on {
		fmt.Fprint(p.out, eraseLine+line)
	}
}

func (p *progress) clear() {
	if p.on {
		fmt.Fprint(p.out, eraseLine)
	}
}
