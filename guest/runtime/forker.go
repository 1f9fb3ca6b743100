//go:build linux

package runtime

import (
	"errors"
	"fmt"
	"os"
	"sync"
	"syscall"

	"dhow/guest/runtime/enter"

	"golang.org/x/sys/unix"
)

// forker holds the dhow-enter that serves: every process of a container is a
// fork of it, made a child of this process. One that dies is replaced at the
// next fork.
type forker struct {
	path string // what to execute

	mu   sync.Mutex
	conn *socket // seqpacket; nil = none runs
	pid  int
}

// enterEnv keeps Go's runtime in dhow-enter to one P and without collector,
// which enter.serve relies on, and from reading this machine's cgroups.
var enterEnv = []string{"GOGC=off", "GOMAXPROCS=1", "GODEBUG=containermaxprocs=0,updatemaxprocs=0,asyncpreemptoff=1"}

// start executes dhow-enter. f.mu is held.
func (f *forker) start() error {
	ours, theirs, err := socketPair(unix.SOCK_SEQPACKET)
	if err != nil {
		return err
	}
	defer unix.Close(theirs)
	null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
	if err != nil {
		return errors.Join(err, ours.Close())
	}
	defer null.Close()
	n := null.Fd()
	pid, err := syscall.ForkExec(f.path, []string{"dhow-enter"}, &syscall.ProcAttr{
		Dir: "/", Env: enterEnv, Files: []uintptr{n, n, n, uintptr(theirs)},
	})
	if err != nil {
		return errors.Join(fmt.Errorf("execute dhow-enter: %w", err), ours.Close())
	}
	// It leaves a fork of itself, which says its pid.
	f.conn = ours
	reap(pid)
	if f.pid, err = f.hello(); err != nil {
		f.pid = 0
		f.stop()
	}
	return err
}

// reap waits for a child that is about to end.
func reap(pid int) {
	for {
		if _, err := unix.Wait4(pid, nil, 0, nil); err != unix.EINTR {
			return
		}
	}
}

// hello reads the server's first words: its pid.
func (f *forker) hello() (int, error) {
	b := make([]byte, enter.ReplySize)
	n, _, err := f.conn.receive(b)
	if err != nil {
		return 0, fmt.Errorf("start dhow-enter: %w", err)
	}
	r, ok := enter.DecodeReply(b[:n])
	if !ok || r.Pid == 0 {
		return 0, errNoForker
	}
	return int(r.Pid), nil
}

// stop ends dhow-enter and waits for it. f.mu is held.
func (f *forker) stop() {
	if f.conn == nil {
		return
	}
	_ = f.conn.Close()
	if f.pid != 0 {
		_ = unix.Kill(f.pid, unix.SIGKILL) // ours until it is waited for
		reap(f.pid)
	}
	f.conn, f.pid = nil, 0
}

func (f *forker) Close() error {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.stop()
	return nil
}

// fork makes a child by the request, with the descriptors attached. It returns
// its pid, and a pidfd that the caller owns.
func (f *forker) fork(r enter.Request, fds []int) (pid, pidfd int, err error) {
	if len(fds) > enter.MaxFDs {
		return 0, -1, fmt.Errorf("%d descriptors are too many for a process: %w", len(fds), unix.E2BIG)
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	for try := 0; ; try++ {
		if f.conn == nil {
			if err := f.start(); err != nil {
				return 0, -1, err
			}
		}
		pid, pidfd, err = f.ask(r.Encode(), fds)
		if err == nil {
			return pid, pidfd, nil
		}
		if !errors.Is(err, errNoForker) {
			return 0, -1, err
		}
		f.stop() // it has died, or answers nonsense
		if try > 0 {
			return 0, -1, err
		}
	}
}

var errNoForker = errors.New("dhow-enter does not answer")

func (f *forker) ask(req []byte, fds []int) (pid, pidfd int, err error) {
	if err := f.conn.send(req, fds...); err != nil {
		return 0, -1, errors.Join(errNoForker, err)
	}
	buf := make([]byte, 64)
	n, pidfd, err := f.conn.receive(buf)
	if err != nil {
		return 0, -1, errors.Join(errNoForker, err)
	}
	rep, ok := enter.DecodeReply(buf[:n])
	switch {
	case ok && rep.Errno != 0 && pidfd < 0:
		return 0, -1, fmt.Errorf("clone: %w", syscall.Errno(rep.Errno))
	case ok && rep.Pid != 0 && pidfd >= 0:
		return int(rep.Pid), pidfd, nil
	}
	if pidfd >= 0 {
		_ = unix.Close(pidfd)
	}
	return 0, -1, errNoForker
}
