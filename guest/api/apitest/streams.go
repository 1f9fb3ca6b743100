//go:build linux

package apitest

import (
	"context"
	"io"
	"net/netip"
	"slices"
	"sync"

	"dhow/guest/engine"
	"dhow/internal/errdefs"

	"github.com/moby/moby/api/types/container"
)

func mustAddr(s string) netip.Addr { return netip.MustParseAddr(s) }

// ContainerAttach implements api.Containers.
func (e *Engine) ContainerAttach(_ context.Context, id string, o engine.AttachOptions) error {
	if err := e.enter("ContainerAttach", o); err != nil {
		return err
	}
	e.mu.Lock()
	b, err := e.find(id)
	if err == nil && b.state == container.StatePaused {
		err = errdefs.New(errdefs.Conflict, "container %s is paused, unpause the container before attach", id)
	}
	if err != nil {
		e.mu.Unlock()
		return err
	}
	live := make(chan engine.LogMessage, 16)
	past := slices.Clone(b.logs)
	ended := b.state == container.StateExited
	stdin := b.stdinW
	if o.Stream && !ended {
		b.sinks[live] = true
	}
	e.mu.Unlock()
	st, err := o.Streams(b.o.Config.Tty)
	if err == nil {
		err = e.enter("ContainerAttach.streams", nil)
	}
	if err != nil {
		e.detach(b, live)
		return err
	}
	write := func(m engine.LogMessage) {
		if m.Stream == "stdout" && o.Stdout {
			_, _ = st.Stdout.Write(m.Line)
		}
		if m.Stream == "stderr" && o.Stderr {
			_, _ = st.Stderr.Write(m.Line)
		}
	}
	if o.Logs {
		for _, m := range past {
			write(m)
		}
	}
	if !o.Stream || ended {
		return nil
	}
	if o.Stdin && b.o.Config.OpenStdin {
		go func() { // ends with the client's input, or with the pipe at the container's end
			_, _ = io.Copy(stdin, st.Stdin)
			if b.o.Config.StdinOnce {
				_ = stdin.Close()
			}
		}()
	}
	for {
		select {
		case m, ok := <-live:
			if !ok {
				return nil
			}
			write(m)
		case <-st.Closed:
			e.detach(b, live)
			return nil
		}
	}
}

// Attached returns how many clients are attached to a container.
func (e *Engine) Attached(id string) int {
	e.mu.Lock()
	defer e.mu.Unlock()
	b, err := e.find(id)
	if err != nil {
		return 0
	}
	return len(b.sinks)
}

func (e *Engine) detach(b *box, c chan engine.LogMessage) {
	go func() { // a writer may be waiting on it
		for range c {
		}
	}()
	e.mu.Lock()
	defer e.mu.Unlock()
	if b.sinks[c] {
		delete(b.sinks, c)
		close(c)
	}
}

// ContainerWait implements api.Containers.
func (e *Engine) ContainerWait(_ context.Context, id string, cond container.WaitCondition) (<-chan engine.WaitResult, error) {
	if err := e.enter("ContainerWait", cond); err != nil {
		return nil, err
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	b, err := e.find(id)
	if err != nil {
		return nil, err
	}
	c := make(chan engine.WaitResult, 1)
	switch {
	case cond == container.WaitConditionRemoved:
		b.removed = append(b.removed, c)
	case cond == container.WaitConditionNotRunning && b.state != container.StateRunning && b.state != container.StatePaused:
		c <- engine.WaitResult{ExitCode: b.code}
	default:
		b.exited = append(b.exited, c)
	}
	return c, nil
}

// ContainerLogs implements api.Containers.
func (e *Engine) ContainerLogs(ctx context.Context, id string, o engine.LogOptions, start func(bool) error, emit func(engine.LogMessage) error) error {
	if err := e.enter("ContainerLogs", o); err != nil {
		return err
	}
	e.mu.Lock()
	b, err := e.find(id)
	if err != nil {
		e.mu.Unlock()
		return err
	}
	past := slices.Clone(b.logs)
	live := make(chan engine.LogMessage, 16)
	follow := o.Follow && b.state == container.StateRunning
	if follow {
		b.sinks[live] = true
	}
	e.mu.Unlock()
	if err := start(b.o.Config.Tty); err != nil {
		return err
	}
	if o.Tail >= 0 && o.Tail < len(past) {
		past = past[len(past)-o.Tail:]
	}
	for _, m := range past {
		if err := emit(m); err != nil {
			return err
		}
	}
	for follow {
		select {
		case m, ok := <-live:
			if !ok {
				return nil
			}
			if err := emit(m); err != nil {
				e.detach(b, live)
				return err
			}
		case <-ctx.Done():
			e.detach(b, live)
			return ctx.Err()
		}
	}
	return nil
}

// exec is an exec's record.
type exec struct {
	id, box string
	o       engine.ExecOptions
	code    *int
	running bool
	size    [2]uint
}

// ExecCreate implements api.Execs.
func (e *Engine) ExecCreate(_ context.Context, id string, o engine.ExecOptions) (string, error) {
	if err := e.enter("ExecCreate", o); err != nil {
		return "", err
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	b, err := e.find(id)
	if err != nil {
		return "", err
	}
	if b.state != container.StateRunning {
		return "", errdefs.New(errdefs.Conflict, "container %s is not running", b.id)
	}
	x := &exec{id: e.newID("exec"), box: b.id, o: o}
	e.execs[x.id] = x
	return x.id, nil
}

func (e *Engine) findExec(id string) (*exec, error) {
	if x := e.execs[id]; x != nil {
		return x, nil
	}
	return nil, errdefs.New(errdefs.NotFound, "No such exec instance: %s", id)
}

// ExecStart implements api.Execs.
func (e *Engine) ExecStart(_ context.Context, id string, o engine.ExecStartOptions) error {
	if err := e.enter("ExecStart", o); err != nil {
		return err
	}
	e.mu.Lock()
	x, err := e.findExec(id)
	if err == nil && (x.running || x.code != nil) {
		err = errdefs.New(errdefs.Conflict, "exec %s has already run", id)
	}
	if err != nil {
		e.mu.Unlock()
		return err
	}
	run := programs[x.o.Cmd[0]]
	if run == nil {
		code := 127
		x.code = &code
		e.mu.Unlock()
		return errdefs.New(errdefs.Invalid, "exec failed: %q: executable file not found in $PATH", x.o.Cmd[0])
	}
	x.running = true
	e.mu.Unlock()
	st := engine.AttachStreams{Stdout: io.Discard, Stderr: io.Discard}
	if !o.Detach {
		if st, err = o.Streams(x.o.Tty); err != nil {
			return err
		}
	}
	if st.Stdin == nil {
		st.Stdin = eof{}
	}
	kill := make(chan int, 1)
	finished := make(chan struct{})
	var watch sync.WaitGroup
	watch.Go(func() {
		select {
		case <-st.Closed:
			kill <- 137
		case <-finished:
		}
	})
	code := run(process{args: x.o.Cmd[1:], stdin: st.Stdin, stdout: st.Stdout, stderr: st.Stderr, kill: kill})
	close(finished)
	watch.Wait()
	e.mu.Lock()
	defer e.mu.Unlock()
	x.code, x.running = &code, false
	return nil
}

type eof struct{}

func (eof) Read([]byte) (int, error) { return 0, io.EOF }

// ExecInspect implements api.Execs.
func (e *Engine) ExecInspect(_ context.Context, id string) (r container.ExecInspectResponse, err error) {
	if err := e.enter("ExecInspect", id); err != nil {
		return r, err
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	x, err := e.findExec(id)
	if err != nil {
		return r, err
	}
	return container.ExecInspectResponse{ID: x.id, Running: x.running, ExitCode: x.code, ContainerID: x.box, OpenStdin: x.o.AttachStdin, OpenStdout: true, OpenStderr: true,
		ProcessConfig: &container.ExecProcessConfig{Entrypoint: x.o.Cmd[0], Arguments: x.o.Cmd[1:], Tty: x.o.Tty}}, nil
}

// ExecResize implements api.Execs.
func (e *Engine) ExecResize(_ context.Context, id string, height, width uint) error {
	if err := e.enter("ExecResize", [2]uint{height, width}); err != nil {
		return err
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	x, err := e.findExec(id)
	if err == nil {
		x.size = [2]uint{height, width}
	}
	return err
}
