//go:build linux

package boot

import (
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// A timeline records when named points of the boot were passed, as time since
// the kernel's start.
type timeline struct {
	mu    sync.Mutex
	names []string
	at    []time.Duration
}

// uptime is CLOCK_BOOTTIME.
func uptime() time.Duration {
	var ts unix.Timespec
	if unix.ClockGettime(unix.CLOCK_BOOTTIME, &ts) != nil {
		return 0
	}
	return time.Duration(ts.Nano())
}

// mark records that the point name is passed now.
func (t *timeline) mark(name string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.names = append(t.names, name)
	t.at = append(t.at, uptime())
}

// env is the value of DHOW_BOOT_STEPS.
func (t *timeline) env() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	var b strings.Builder
	for i, n := range t.names {
		if i > 0 {
			b.WriteByte(',')
		}
		b.WriteString(n)
		b.WriteByte('=')
		b.WriteString(strconv.FormatInt(int64(t.at[i]), 10))
	}
	return b.String()
}
