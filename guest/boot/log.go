//go:build linux

package boot

import (
	"fmt"
	"os"
	"runtime/debug"
	"sync"

	"golang.org/x/sys/unix"
)

// Kernel log levels. The console shows those below the kernel's console level,
// which stage 2 raises to show notices.
const (
	levelError  = 3
	levelNotice = 5
	levelInfo   = 6
)

// A kmsg is a writer of lines into the kernel's log, which puts them on every
// console, also on one whose driver is loaded later. The zero value drops what it
// is given until open succeeds.
type kmsg struct {
	mu sync.Mutex
	f  *os.File
}

// open opens /dev/kmsg, once.
func (k *kmsg) open() {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.f == nil {
		if fd, err := unix.Open("/dev/kmsg", unix.O_WRONLY|unix.O_CLOEXEC, 0); err == nil {
			k.f = os.NewFile(uintptr(fd), "/dev/kmsg")
		}
	}
}

// maxLine is what one record of the kernel's log holds, less our prefix.
const maxLine = 900

// line writes one record; longer text is cut into several.
func (k *kmsg) line(level int, who, text string) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.f == nil {
		return
	}
	for {
		part := text
		if len(part) > maxLine {
			part = part[:maxLine]
		}
		text = text[len(part):]
		_, _ = fmt.Fprintf(k.f, "<%d>%s: %s\n", level, who, part) // nowhere to report it
		if text == "" {
			return
		}
	}
}

const self = "dhow-init"

func (k *kmsg) notice(format string, args ...any) {
	k.line(levelNotice, self, fmt.Sprintf(format, args...))
}
func (k *kmsg) error(format string, args ...any) {
	k.line(levelError, self, fmt.Sprintf(format, args...))
}

// guard runs f; a panic in it is logged and returned as an error, so that PID 1
// goes on.
func (k *kmsg) guard(name string, f func() error) (err error) {
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("%s: panic: %v", name, p)
			k.error("%v", err)
			k.line(levelNotice, self, string(debug.Stack()))
		}
	}()
	return f()
}
