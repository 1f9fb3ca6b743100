//go:build linux

package engine

import (
	"context"
	"errors"
	"os"
	"time"

	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/events"
	"golang.org/x/sys/unix"

	"dhow/guest/runtime"
	"dhow/internal/errdefs"
	"dhow/internal/steps"
)

// exitUnknown is the exit code of a container that could not be started for a
// reason of its own (dockerd's figure).
const exitUnknown = 128

// exitNotExecuted is that of a program that the kernel refused (runc's figure).
const exitNotExecuted = 255

// ContainerStart starts a container. It returns when the program runs. The
// request's end does not stop a start half way.
func (e *Engine) ContainerStart(ctx context.Context, id string) error {
	b, err := e.get(id)
	if err != nil {
		return err
	}
	return e.start(context.WithoutCancel(ctx), b)
}

func (e *Engine) start(ctx context.Context, b *box) error { return e.startBy(ctx, b, false) }

// startBy starts b; byPolicy is a start that no person asked for.
func (e *Engine) startBy(ctx context.Context, b *box, byPolicy bool) error {
	err := e.startLocked(ctx, b, byPolicy)
	// A container that goes with its process goes with a start that failed, too.
	var failed *startError
	if errors.As(err, &failed) && b.copy().HostConfig.AutoRemove {
		if rerr := e.remove(ctx, b, b.id, true); rerr != nil && !errdefs.Is(rerr, errdefs.NotFound) {
			e.log.Error("remove container after its start failed", "container", b.id, "err", rerr)
		}
	}
	return err
}

// startError marks an error of a start that was really tried.
type startError struct{ error }

func (e *startError) Unwrap() error { return e.error }

func (e *Engine) startLocked(ctx context.Context, b *box, byPolicy bool) error {
	b.life.Lock()
	defer b.life.Unlock()
	if e.isStopping() { // Stop waits for the starts that came before
		return errdefs.New(errdefs.Unavailable, "the machine is being stopped: no container can be started")
	}
	r := b.copy()
	switch s := r.State.Status; {
	case s == container.StatePaused:
		return errdefs.New(errdefs.Conflict, "cannot start a paused container, try unpause instead")
	case s == container.StateRunning, s == container.StateRestarting && !byPolicy:
		return errdefs.New(errdefs.NotModified, "Container is already started")
	case s == container.StateDead && r.State.Error != "":
		return errdefs.New(errdefs.Conflict, "container is marked for removal and cannot be started: %s", r.State.Error)
	case s == container.StateRemoving, s == container.StateDead:
		return errdefs.New(errdefs.Conflict, "container is marked for removal and cannot be started")
	}
	if b.isRemoved() {
		return errdefs.New(errdefs.NotFound, "No such container: %s", b.id)
	}
	l := &launch{e: e, b: b, rec: r, io: b.streams()}
	if err := steps.Run(ctx, e.timed(ctx, "start", b.id, l.steps())); err != nil {
		return e.startFailed(ctx, b, err)
	}
	b.mu.Lock()
	b.task, b.endpoint = l.task, l.endpoint
	s := &b.rec.State
	err := s.transition(evStart)
	s.Pid, s.ExitCode, s.Error, s.OOMKilled, s.StartedAt = l.task.Pid(), 0, "", false, l.at
	b.rec.ManuallyStopped = false
	if !byPolicy {
		b.rec.RestartCount = 0
	}
	b.mu.Unlock()
	if err != nil {
		e.log.Error("start", "container", b.id, "err", err) // the status was checked under the same lock
	}
	e.event(b, events.ActionStart, nil)
	e.lives.Go(func() { e.watch(b, l.task, l.io) })
	return nil
}

// launch is one start: what its steps share.
type launch struct {
	e        *Engine
	b        *box
	rec      Record
	io       *stdio
	at       time.Time
	create   runtime.CreateConfig
	ends     ends
	task     Task
	endpoint *Endpoint
	saved    chan error
}

// steps are a container's start in order. What fails undoes what came before.
func (l *launch) steps() []steps.Step {
	return []steps.Step{
		{Name: "open streams", Do: l.openStreams, Undo: l.closeStreams}, // first: whoever is attached sees the end of a start that fails
		{Name: "find network", Do: l.findNetwork},
		// It waits, so that the record of a start that failed is written after it.
		{Name: "record the start", Do: l.record, Undo: l.waitRecord},
		{Name: "mount data", Do: l.mountData},
		{Name: "write files", Do: l.writeFiles},
		{Name: "build spec", Do: l.buildSpec},
		{Name: "create process", Do: l.createProcess, Undo: l.deleteProcess},
		{Name: "attach network", Do: l.attachNetwork, Undo: l.detachNetwork},
		{Name: "fill files", Do: l.fillFiles},
		{Name: "start process", Do: l.startProcess},
		{Name: "wait for the record", Do: l.waitRecord, Undo: nil},
	}
}

func (l *launch) logs() (out, errs *lineWriter) {
	if l.b.log == nil {
		return nil, nil
	}
	return &lineWriter{log: l.b.log, stream: "stdout"}, &lineWriter{log: l.b.log, stream: "stderr"}
}

func (l *launch) openStreams(context.Context) (err error) {
	out, errs := l.logs()
	l.ends, err = l.io.open(out, errs)
	return err
}

// closeStreams ends the life before it began: a client that is attached sees
// the end.
func (l *launch) closeStreams(context.Context) error {
	l.ends.close()
	l.b.mu.Lock()
	if l.b.io == l.io {
		l.b.io = nil
	}
	l.b.mu.Unlock()
	l.io.finish(0)
	return l.b.log.close()
}

// record writes that the container runs, beside the steps that make it so: the
// flush costs no time of the start's, and a start that was acknowledged is on
// disk (it shows as exited after a crash, not as created).
func (l *launch) record(ctx context.Context) error {
	l.at = time.Now().UTC()
	if l.rec.HostConfig.AutoRemove {
		return nil // see save
	}
	r := l.rec
	r.ManuallyStopped = false
	if err := r.State.transition(evStart); err != nil {
		return err
	}
	r.State.StartedAt, r.State.ExitCode, r.State.Error, r.State.OOMKilled = l.at, 0, "", false
	l.saved = make(chan error, 1)
	go func() { l.saved <- putRecord(ctx, l.e.o.DB, &r) }()
	return nil
}

func (l *launch) waitRecord(context.Context) error {
	if l.saved == nil {
		return nil
	}
	err := <-l.saved
	l.saved = nil
	if err != nil {
		// The container runs: that its record is old is for the log, not a reason to end it.
		l.e.log.Error("save container", "container", l.b.id, "err", err)
	}
	return nil
}

func (l *launch) mountData(ctx context.Context) error {
	mounts, err := l.e.o.Store.ContainerMounts(ctx, l.b.id)
	if err != nil {
		return err
	}
	for _, m := range mounts {
		l.create.Rootfs = append(l.create.Rootfs, runtime.Mount(m))
	}
	return nil
}

func (l *launch) createProcess(ctx context.Context) (err error) {
	l.create.ID = l.b.id
	l.create.IO = runtime.IO{Terminal: l.io.terminal, Stdin: l.ends.stdin, Stdout: l.ends.stdout, Stderr: l.ends.stderr}
	l.task, err = l.e.o.Runtime.Create(ctx, l.create)
	l.ends.close() // the process has its own
	if err != nil {
		return err
	}
	if l.io.terminal {
		if size := l.rec.HostConfig.ConsoleSize; size[0] > 0 && size[1] > 0 {
			_ = l.task.Resize(uint16(size[1]), uint16(size[0]))
		}
		out, _ := l.logs()
		l.io.setTerminal(l.task.Terminal(), out)
	}
	return nil
}

func (l *launch) deleteProcess(ctx context.Context) error { return l.task.Delete(ctx) }

// startProcess has the program executed. What the kernel refuses now, after
// the program was found, is the container's own failure, as with docker: it
// started, said why on its standard error, and ended with code 255. The
// program of another processor's architecture is the usual case.
func (l *launch) startProcess(ctx context.Context) error {
	err := l.task.Start(ctx)
	var x *runtime.ExecError
	if !errors.As(err, &x) || x.NotInPath {
		return err
	}
	out, errs := l.logs()
	if l.io.terminal {
		errs = out
	}
	l.io.say("exec "+x.Path+": "+x.Errno.Error(), errs)
	l.task = stillborn{Task: l.task, at: time.Now()}
	return nil
}

// stillborn is a task whose program could not be executed.
type stillborn struct {
	Task
	at time.Time
}

func (stillborn) Wait() <-chan struct{} { return closed }
func (s stillborn) Exit() runtime.Exit  { return runtime.Exit{Code: exitNotExecuted, At: s.at} }

var closed = func() <-chan struct{} { c := make(chan struct{}); close(c); return c }()

// findNetwork refuses a network that is not there, and the host's address
// where there is none, before anything is made.
func (l *launch) findNetwork(context.Context) error {
	if err := l.e.checkGateway(l.rec.HostConfig); err != nil {
		return err
	}
	mode := l.rec.HostConfig.NetworkMode
	if mode.IsUserDefined() && l.e.findNetwork(string(mode)) == nil {
		return networkError(errdefs.New(errdefs.NotFound, "network %s not found", mode))
	}
	return nil
}

// networkError has docker's words before what is wrong with a network.
func networkError(err error) error {
	return errdefs.Wrap(errdefs.ClassOf(err), err, "failed to set up container networking: %s", errdefs.Sentence(err))
}

func (l *launch) attachNetwork(ctx context.Context) error {
	mode := string(l.rec.HostConfig.NetworkMode)
	if l.e.o.Network != nil {
		a := Attach{ContainerID: l.b.id, Pid: l.task.Pid(), Mode: mode}
		if s := l.rec.Networks[mode]; s != nil {
			a.MAC = s.MacAddress.String()
			if s.IPAMConfig != nil && s.IPAMConfig.IPv4Address.IsValid() {
				a.IP = s.IPAMConfig.IPv4Address.String()
			}
		}
		ep, err := l.e.o.Network.Attach(ctx, a)
		if err != nil {
			return networkError(err)
		}
		l.endpoint = &ep
	}
	return nil
}

func (l *launch) fillFiles(context.Context) error {
	return errors.Join(l.fillHosts(), l.fillResolv())
}

func (l *launch) detachNetwork(ctx context.Context) error {
	if l.e.o.Network == nil {
		return nil
	}
	return l.e.o.Network.Detach(ctx, l.b.id)
}

// startFailed records why a start failed and returns what the user is told.
func (e *Engine) startFailed(ctx context.Context, b *box, cause error) error {
	code, err := describeStart(cause)
	b.mu.Lock()
	b.rec.State.ExitCode, b.rec.State.Error = code, errdefs.Sentence(err)
	b.mu.Unlock()
	if serr := e.save(ctx, b); serr != nil {
		e.log.Error("save container", "container", b.id, "err", serr)
	}
	e.log.Debug("start failed", "container", b.id, "err", cause)
	return &startError{err}
}

// describeStart gives the exit code and dockerd's sentence for a start that
// failed. Clients make their own exit codes 125, 126 and 127 of the sentence.
func describeStart(cause error) (int, error) {
	const prefix = "failed to create task for container: failed to create shim task: OCI runtime create failed: runc create failed: " +
		"unable to start container process: error during container init: "
	var x *runtime.ExecError
	if errors.As(cause, &x) {
		return x.ExitCode(), errdefs.Wrap(errdefs.Invalid, cause, "%s%s", prefix, x.Error())
	}
	class := errdefs.ClassOf(cause)
	sentence := errdefs.Sentence(cause)
	if _, ok := errors.AsType[*errdefs.Error](cause); !ok { // of the runtime or the system, with no sentence of its own
		sentence = "failed to create task for container: " + sentence
	}
	code := exitUnknown
	if errors.Is(cause, os.ErrPermission) || errors.Is(cause, unix.EACCES) {
		code = 126
	}
	return code, errdefs.Wrap(class, cause, "%s", sentence)
}
