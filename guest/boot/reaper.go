//go:build linux

package boot

import (
	"fmt"
	"os"
	"strings"
	"sync"
	"syscall"
	"time"
)

// maxExits bounds the table of reaped orphans.
const maxExits = 1024

// An exit is how a process ended.
type exit struct {
	pid    int
	status syscall.WaitStatus
	at     time.Time
}

// code is the shell's: the exit code, or 128 + the signal.
func (e exit) code() int {
	if e.status.Signaled() {
		return 128 + int(e.status.Signal())
	}
	return e.status.ExitStatus()
}

func (e exit) String() string {
	if e.status.Signaled() {
		return "was killed by signal " + e.status.Signal().String()
	}
	return fmt.Sprintf("ended with status %d", e.status.ExitStatus())
}

// A reaper is the one caller of wait4 in the process. It hands the exit of a
// process that init started to whoever waits for it, and keeps those of orphans
// in a table.
type reaper struct {
	mu      sync.Mutex
	waiters map[int]chan exit
	orphans []exit // oldest first
	idle    chan struct{}
}

func newReaper() *reaper { return &reaper{waiters: map[int]chan exit{}} }

// start starts a process. Its exit arrives on the channel, which has room for
// it. The lock is held over the fork, so that the exit cannot be taken for an
// orphan's.
func (r *reaper) start(argv []string, attr *syscall.ProcAttr) (pid int, done <-chan exit, err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	pid, err = syscall.ForkExec(argv[0], argv, attr)
	if err != nil {
		return 0, nil, &os.PathError{Op: "exec", Path: argv[0], Err: err}
	}
	c := make(chan exit, 1)
	r.waiters[pid] = c
	return pid, c, nil
}

// reap collects all children that have ended; called at each SIGCHLD.
func (r *reaper) reap() {
	for {
		var ws syscall.WaitStatus
		pid, err := syscall.Wait4(-1, &ws, syscall.WNOHANG, nil)
		if err == syscall.EINTR {
			continue
		}
		if pid <= 0 {
			r.mu.Lock()
			if err == syscall.ECHILD && r.idle != nil {
				close(r.idle)
				r.idle = nil
			}
			r.mu.Unlock()
			return
		}
		r.ended(exit{pid, ws, time.Now()})
	}
}

func (r *reaper) ended(e exit) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if c := r.waiters[e.pid]; c != nil {
		delete(r.waiters, e.pid)
		c <- e
		return
	}
	if len(r.orphans) == maxExits {
		copy(r.orphans, r.orphans[1:])
		r.orphans = r.orphans[:maxExits-1]
	}
	r.orphans = append(r.orphans, e)
}

// childless returns a channel that is closed when no child is left, as seen by
// the next reap.
func (r *reaper) childless() <-chan struct{} {
	r.mu.Lock()
	if r.idle == nil {
		r.idle = make(chan struct{})
	}
	c := r.idle
	r.mu.Unlock()
	r.reap()
	return c
}

// exits is the answer to the socket's verb of that name.
func (r *reaper) exits() string {
	r.mu.Lock()
	defer r.mu.Unlock()
	var b strings.Builder
	for _, e := range r.orphans {
		sig := 0
		if e.status.Signaled() {
			sig = int(e.status.Signal())
		}
		fmt.Fprintf(&b, "%d %d %d %d\n", e.pid, e.code(), sig, e.at.UnixNano())
	}
	return b.String()
}
