package qemu

import (
	"errors"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"sync"
	"time"
)

// stderrMax is how much of QEMU's own output is kept, in bytes.
const stderrMax = 8 << 10

// process is QEMU. It is killed when this process dies, however it dies.
type process struct {
	cmd    *exec.Cmd
	stderr tail
	exited chan struct{} // closed once it is reaped and its output is read
	status string        // valid once exited is closed, e.g. "exit status 1"
}

// spawn starts QEMU with the inherited socket as file descriptor 3 and copies
// its standard output (the guest's console) to console. inherit is closed.
func spawn(binary string, args []string, inherit *os.File, console func(*os.File)) (*process, error) {
	defer inherit.Close()
	out, outWrite, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	defer outWrite.Close()
	errs, errsWrite, err := os.Pipe()
	if err != nil {
		_ = out.Close()
		return nil, err
	}
	defer errsWrite.Close()
	p := &process{cmd: exec.Command(binary, args...), exited: make(chan struct{})}
	p.cmd.Stdout, p.cmd.Stderr = outWrite, errsWrite
	p.cmd.ExtraFiles = []*os.File{inherit}
	p.cmd.Env = environment()
	p.cmd.SysProcAttr = attributes()

	started := make(chan error)
	go func() {
		// The signal at the parent's death comes at the death of the thread that
		// forked: this one lives as long as QEMU.
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		err := p.cmd.Start()
		started <- err
		if err != nil {
			return
		}
		var copies sync.WaitGroup
		copies.Go(func() { defer out.Close(); console(out) })
		copies.Go(func() { defer errs.Close(); _, _ = errs.WriteTo(&p.stderr) })
		err = p.cmd.Wait()
		copies.Wait()
		p.status = p.cmd.ProcessState.String()
		if p.cmd.ProcessState == nil {
			p.status = err.Error()
		}
		close(p.exited)
	}()
	if err := <-started; err != nil {
		_ = out.Close()
		_ = errs.Close()
		return nil, err
	}
	return p, nil
}

// fdInherited is the number of the inherited socket in QEMU.
const fdInherited = 3

// environment is all that QEMU needs of ours, which may hold secrets.
func environment() []string {
	env := []string{"LC_ALL=C"}
	for _, name := range []string{"PATH", "HOME", "TMPDIR"} {
		if v, ok := os.LookupEnv(name); ok {
			env = append(env, name+"="+v)
		}
	}
	return env
}

// kill ends QEMU by force; it does not wait.
func (p *process) kill() error {
	err := p.cmd.Process.Kill()
	if errors.Is(err, os.ErrProcessDone) {
		return nil
	}
	return err
}

// reap kills QEMU, if it still runs, and waits until it is gone.
func (p *process) reap(timeout <-chan time.Time) error {
	err := p.kill()
	select {
	case <-p.exited:
		return nil
	case <-timeout:
		if err == nil {
			err = errors.New("QEMU does not end although it was killed")
		}
		return err
	}
}

// tail keeps the last bytes that are written to it.
type tail struct {
	mu sync.Mutex
	b  []byte
}

func (t *tail) Write(p []byte) (int, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.b = append(t.b, p...)
	if over := len(t.b) - stderrMax; over > 0 {
		t.b = append(t.b[:0], t.b[over:]...)
	}
	return len(p), nil
}

func (t *tail) String() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	return strings.TrimSpace(string(t.b))
}
