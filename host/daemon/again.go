package daemon

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"dhow/host/vm"
)

// hangTimeout is how long an emulated guest gets at its first try, where a later
// try has all of bootTimeout.
const hangTimeout = time.Minute

// A hungError is the first try's, of an emulated guest that was killed because
// its agent had not answered in time.
//
// QEMU before 8.1 emulates several CPUs in threads (MTTCG) whose translated
// code can be stale after a guest's kernel has patched its own: rarely, a CPU
// then loops for ever. The next boot of the same guest works.
type hungError struct {
	error
	why string // what the console shows of it
}

func (e *hungError) Unwrap() error { return e.error }

// bootLife boots the machine and returns when its agent has answered. An
// emulated guest that hangs is booted once more. On an error nothing is left but
// the console's log and the data disk. progress is told each step.
func bootLife(ctx context.Context, c machineConfig, progress func(string)) (*life, error) {
	asked := time.Now()
	l, err := bootOnce(ctx, c, asked, c.HangTimeout, progress)
	var hung *hungError
	if !errors.As(err, &hung) || ctx.Err() != nil || l.machine.State() != vm.Stopped {
		return l, err
	}
	c.Log.Warn("the guest did not boot; trying once more", "after", c.HangTimeout, "reason", hung.why, "console", c.Layout.ConsoleLog()+".1")
	progress("booting once more: the guest hung")
	return bootOnce(ctx, c, asked, 0, progress)
}

// emulated reports whether software executes the machine's instructions.
func emulated(m vm.Machine) bool {
	a, ok := m.(vm.Accelerated)
	if !ok {
		return false
	}
	name, _ := a.Acceleration()
	return name == "tcg"
}

// hangSigns are what a kernel prints of a CPU that has stopped.
var hangSigns = []string{"soft lockup", "detected stalls", "Kernel panic"}

// whyHung returns the last line of a console that tells of a hang.
func whyHung(console string) string {
	lines := lastLines(console, 1000)
	for i := len(lines) - 1; i >= 0; i-- {
		for _, s := range hangSigns {
			if strings.Contains(lines[i], s) {
				return strings.TrimSpace(lines[i])
			}
		}
	}
	return fmt.Sprintf("nothing of it is in the last %d lines of the console", len(lines))
}
