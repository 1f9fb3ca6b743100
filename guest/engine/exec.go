//go:build linux

package engine

import (
	"context"
	"errors"
	"maps"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/events"

	"dhow/guest/runtime"
	"dhow/guest/runtime/spec"
	"dhow/internal/errdefs"
)

// execKept is how long an execution can be asked for its exit code after its
// end (dockerd's figure).
const execKept = 5 * time.Minute

// endedExec is an execution that ended.
type endedExec struct {
	x  *execution
	at time.Time
}

// execution is a program that was asked for in a running container.
type execution struct {
	id   string
	box  *box
	opts container.ExecCreateRequest
	keys []byte
	io   *stdio

	mu      sync.Mutex
	started bool
	running bool
	code    *int // nil until it ended
	pid     int
	process Process
}

// ExecCreate notes a program to run in a container and returns its ID.
func (e *Engine) ExecCreate(ctx context.Context, id string, o ExecOptions) (string, error) {
	b, err := e.get(id)
	if err != nil {
		return "", err
	}
	if err := canExec(b, id); err != nil {
		return "", err
	}
	if len(o.Cmd) == 0 {
		return "", errdefs.New(errdefs.Invalid, "No exec command specified")
	}
	keys, err := parseKeys(o.DetachKeys)
	if err != nil {
		return "", err
	}
	x := &execution{id: newID(), box: b, opts: o.ExecCreateRequest, keys: keys, io: newStdio(o.Tty, o.AttachStdin)}
	if err := e.keepExec(x); err != nil {
		return "", err
	}
	e.execEvent(x, events.ActionExecCreate, true, nil)
	return x.id, nil
}

// keepExec makes x known, and forgets those that ended long ago.
func (e *Engine) keepExec(x *execution) error {
	b := x.box
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.byID[b.id] != b { // removed meanwhile: nothing would free x
		return errdefs.New(errdefs.NotFound, "No such container: %s", b.id)
	}
	old := 0
	for ; old < len(e.past) && time.Since(e.past[old].at) >= execKept; old++ {
		delete(e.execs, e.past[old].x.id)
	}
	e.past = slices.Delete(e.past, 0, old)
	e.execs[x.id] = x
	b.mu.Lock()
	b.execs[x.id] = x
	b.mu.Unlock()
	return nil
}

// endExec takes x, which ended, from its container's list. Its exit code can be
// asked for a while longer.
func (e *Engine) endExec(x *execution) {
	b := x.box
	b.mu.Lock()
	delete(b.execs, x.id)
	b.mu.Unlock()
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.execs[x.id] == x {
		e.past = append(e.past, endedExec{x, time.Now()})
	}
}

// forgetExecs drops all executions of b, which is removed. e.mu is held.
func (e *Engine) forgetExecs(b *box) {
	maps.DeleteFunc(e.execs, func(_ string, x *execution) bool { return x.box == b })
	e.past = slices.DeleteFunc(e.past, func(d endedExec) bool { return d.x.box == b })
}

func canExec(b *box, name string) error {
	switch r := b.copy(); {
	case r.State.Status == container.StatePaused:
		return errdefs.New(errdefs.Conflict, "Container %s is paused, unpause the container before exec", name)
	case r.State.Status == container.StateRestarting:
		return errdefs.New(errdefs.Conflict, "Container %s is restarting, wait until the container is running", name)
	case !r.State.alive():
		return notRunning(b.id)
	}
	return nil
}

func (e *Engine) execEvent(x *execution, a events.Action, withCommand bool, extra map[string]string) {
	if withCommand {
		a += events.Action(": " + strings.Join(x.opts.Cmd, " "))
	}
	attrs := map[string]string{"execID": x.id}
	maps.Copy(attrs, extra)
	e.event(x.box, a, attrs)
}

func (e *Engine) exec(id string) (*execution, error) {
	e.mu.RLock()
	defer e.mu.RUnlock()
	if x := e.execs[id]; x != nil {
		return x, nil
	}
	return nil, errdefs.New(errdefs.NotFound, "No such exec instance: %s", id)
}

// ExecStart runs what ExecCreate noted. Attached, it returns when the
// program's output has ended.
func (e *Engine) ExecStart(ctx context.Context, execID string, o ExecStartOptions) error {
	x, err := e.exec(execID)
	if err != nil {
		return err
	}
	if err := canExec(x.box, x.box.id); err != nil {
		return err
	}
	x.mu.Lock()
	switch {
	case x.code != nil:
		err = errdefs.New(errdefs.Conflict, "Error: Exec command %s has already run", x.id)
	case x.started:
		err = errdefs.New(errdefs.Conflict, "Error: Exec command %s is already running", x.id)
	}
	x.started = true
	x.mu.Unlock()
	if err != nil {
		return err
	}
	var a *attachment
	if !o.Detach && o.Streams != nil {
		a = &attachment{keys: x.keys, stdin: x.opts.AttachStdin, closeStdin: !x.opts.Tty}
		// Before the program runs, so that its first byte is seen.
		a.arm(x.io, x.opts.AttachStdout, x.opts.AttachStderr)
		if a.s, err = o.Streams(x.opts.Tty); err != nil {
			a.disarm()
			e.execFailed(x, 126)
			return err
		}
	}
	e.execEvent(x, events.ActionExecStart, true, nil)
	var end chan error
	if a != nil {
		end = make(chan error, 1)
		go func() { end <- a.run(ctx) }()
	}
	if err := e.execRun(context.WithoutCancel(ctx), x, o); err != nil {
		if end != nil {
			<-end
		}
		return err
	}
	if end == nil {
		return nil
	}
	err = <-end
	if errors.Is(err, errDetached) {
		e.execEvent(x, events.ActionExecDetach, false, nil)
		return nil
	}
	return err
}

// execFailed ends an execution that never ran.
func (e *Engine) execFailed(x *execution, code int) {
	x.mu.Lock()
	if x.code == nil {
		x.code = &code
	}
	x.mu.Unlock()
	x.io.finish(0)
	e.endExec(x)
}

// execRun starts the program and returns once it runs.
func (e *Engine) execRun(ctx context.Context, x *execution, o ExecStartOptions) error {
	b := x.box
	b.mu.Lock()
	task, r := b.task, b.rec
	b.mu.Unlock()
	if task == nil {
		e.execFailed(x, 126)
		return notRunning(b.id)
	}
	ends, err := x.io.open(nil, nil)
	if err != nil {
		e.execFailed(x, 126)
		return err
	}
	size := o.ConsoleSize
	if size == nil {
		size = x.opts.ConsoleSize
	}
	proc, err := spec.Process(spec.ExecInput{
		Config: r.Config, HostConfig: r.HostConfig,
		Cmd: x.opts.Cmd, Env: x.opts.Env, User: x.opts.User, WorkingDir: x.opts.WorkingDir,
		Privileged: x.opts.Privileged, Tty: x.opts.Tty,
	})
	var p Process
	if err == nil {
		p, err = task.Exec(ctx, runtime.ExecConfig{ID: x.id, Process: proc, IO: runtime.IO{
			Terminal: x.opts.Tty, Stdin: ends.stdin, Stdout: ends.stdout, Stderr: ends.stderr,
		}})
	}
	ends.close()
	if err != nil {
		code, err := describeExecStart(b, err)
		e.execFailed(x, code)
		return err
	}
	if x.opts.Tty {
		if size != nil && size[0] > 0 && size[1] > 0 {
			_ = p.Resize(uint16(size[1]), uint16(size[0]))
		}
		x.io.setTerminal(p.Terminal(), nil)
	}
	x.mu.Lock()
	x.running, x.pid, x.process = true, p.Pid(), p
	x.mu.Unlock()
	e.lives.Go(func() { e.watchExec(x, p) })
	return nil
}

// watchExec waits for the program's end. Its exit code is known before its
// streams end: a client that sees the end asks for the code at once.
func (e *Engine) watchExec(x *execution, p Process) {
	<-p.Wait()
	code := p.Exit().Code
	x.mu.Lock()
	x.running, x.code, x.process = false, &code, nil
	x.mu.Unlock()
	x.io.finish(drainTimeout)
	e.endExec(x)
	e.execEvent(x, events.ActionExecDie, false, map[string]string{"exitCode": strconv.Itoa(code)})
}

// describeExecStart gives the exit code and dockerd's sentence for a program
// that could not be run in b.
func describeExecStart(b *box, cause error) (int, error) {
	const prefix = "OCI runtime exec failed: exec failed: unable to start container process: "
	var x *runtime.ExecError
	if errors.As(cause, &x) {
		return x.ExitCode(), errdefs.Wrap(errdefs.Invalid, cause, "%s%s", prefix, x.Error())
	}
	class := errdefs.ClassOf(cause)
	if class == errdefs.Conflict {
		// The container ended or was paused meanwhile: then docker's answer is a
		// conflict, as it would have been before. Nothing else is one.
		if err := canExec(b, b.id); err != nil {
			return 126, err
		}
		class = errdefs.Internal
	}
	return 126, errdefs.Wrap(class, cause, "%s%s", prefix, errdefs.Sentence(cause))
}

// ExecInspect tells how an execution stands.
func (e *Engine) ExecInspect(ctx context.Context, execID string) (container.ExecInspectResponse, error) {
	x, err := e.exec(execID)
	if err != nil {
		return container.ExecInspectResponse{}, err
	}
	x.mu.Lock()
	defer x.mu.Unlock()
	privileged := x.opts.Privileged
	return container.ExecInspectResponse{
		ID: x.id, Running: x.running, ExitCode: x.code, Pid: x.pid, ContainerID: x.box.id,
		OpenStdin: x.opts.AttachStdin, OpenStdout: x.opts.AttachStdout, OpenStderr: x.opts.AttachStderr,
		CanRemove: x.code != nil, DetachKeys: []byte(x.opts.DetachKeys),
		ProcessConfig: &container.ExecProcessConfig{
			Tty: x.opts.Tty, Entrypoint: x.opts.Cmd[0], Arguments: slices.Clone(x.opts.Cmd[1:]),
			Privileged: &privileged, User: x.opts.User,
		},
	}, nil
}

// ExecResize sets the size of an execution's terminal.
func (e *Engine) ExecResize(ctx context.Context, execID string, height, width uint) error {
	x, err := e.exec(execID)
	if err != nil {
		return err
	}
	x.mu.Lock()
	p := x.process
	x.mu.Unlock()
	if p == nil {
		return errdefs.New(errdefs.Conflict, "cannot resize a stopped container: exec %s is not running", x.id)
	}
	return p.Resize(uint16(width), uint16(height))
}

func sizeAttributes(height, width uint) map[string]string {
	return map[string]string{"height": strconv.FormatUint(uint64(height), 10), "width": strconv.FormatUint(uint64(width), 10)}
}
