//go:build linux

package engine

import (
	"context"
	"errors"
	"io"
	"time"

	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/events"

	"dhow/internal/errdefs"
)

// ContainerAttach joins a client with a container's streams until they end. The
// container need not run: attached before its start, the client sees the first
// byte.
func (e *Engine) ContainerAttach(ctx context.Context, id string, o AttachOptions) error {
	keys, err := parseKeys(o.DetachKeys)
	if err != nil {
		return err
	}
	b, err := e.get(id)
	if err != nil {
		return err
	}
	r := b.copy()
	switch r.State.Status {
	case container.StatePaused:
		return errdefs.New(errdefs.Conflict, "container %s is paused, unpause the container before attach", id)
	case container.StateRestarting:
		return errdefs.New(errdefs.Conflict, "container %s is restarting, wait until the container is running", id)
	}
	once := r.Config.StdinOnce && !r.Config.Tty
	a := attachment{keys: keys, closeStdin: once, stdin: o.Stdin && r.Config.OpenStdin}
	if o.Stream && !o.Logs {
		// Before the client is told that it is attached: what it starts then is seen
		// from the first byte.
		a.arm(b.streams(), o.Stdout, o.Stderr)
	}
	if a.s, err = o.Streams(r.Config.Tty); err != nil {
		a.disarm()
		return err
	}
	if o.Logs {
		if err := e.replay(ctx, b, o, a.s); err != nil {
			return err
		}
	}
	e.event(b, events.ActionAttach, nil)
	if !o.Stream {
		return nil
	}
	if o.Logs {
		a.arm(b.streams(), o.Stdout, o.Stderr)
	}
	life := a.life
	switch err := a.run(ctx); {
	case errors.Is(err, errDetached):
		e.event(b, events.ActionDetach, nil)
	case err != nil:
		return err
	case once && o.Stdin && life.isDone():
		// The client's connection ends with the container, whose exit code is then known.
		within(ctx, b.wait(ctx, container.WaitConditionNotRunning), killTimeout)
	}
	return nil
}

// replay sends what the log holds.
func (e *Engine) replay(ctx context.Context, b *box, o AttachOptions, s AttachStreams) error {
	if b.log == nil {
		return errdefs.New(errdefs.Unimplemented, "configured logging driver does not support reading")
	}
	r, err := b.log.reader(-1)
	if err != nil {
		return err
	}
	defer r.close()
	return r.run(ctx, nil, func(rec record) (bool, error) {
		var err error
		if rec.Stream == "stderr" && o.Stderr {
			_, err = io.WriteString(s.Stderr, rec.Log)
		} else if rec.Stream != "stderr" && o.Stdout {
			_, err = io.WriteString(s.Stdout, rec.Log)
		}
		return true, err
	})
}

// attachment is one client joined with the streams of one life.
type attachment struct {
	life       *stdio
	client     *client
	s          AttachStreams
	stdin      bool
	keys       []byte
	closeStdin bool // the end of the client's input is the end of the process's
}

// arm keeps the wanted outputs of a life from now on.
func (a *attachment) arm(life *stdio, out, err bool) {
	a.life, a.client = life, life.arm(out, err)
}

// disarm gives up an attachment that does not run.
func (a *attachment) disarm() {
	if a.client != nil {
		a.client.kill()
	}
}

// run returns when the output has ended and was delivered, the client is gone,
// or, where the client's input has a part in it, that has ended.
func (a *attachment) run(ctx context.Context) error {
	c := a.client
	c.begin(a.s.Stdout, a.s.Stderr)
	// Whatever ends it, nothing is written to the client after run returned.
	defer func() {
		c.kill()
		<-c.done
	}()
	var input chan error
	stop := make(chan struct{})
	defer close(stop)
	if a.stdin {
		input = make(chan error, 1)
		go func() { input <- a.copyInput(stop) }()
	}
	for {
		select {
		case <-c.done:
			return nil
		case <-a.s.Closed:
			return nil
		case <-ctx.Done():
			return ctx.Err()
		case err := <-input:
			if errors.Is(err, errDetached) {
				return err
			}
			input = nil
			if a.closeStdin {
				a.life.closeStdin()
				continue // the output goes on
			}
			// As in dockerd, the end of the input ends the attachment, even though the
			// process goes on; but what it wrote until now is delivered.
			if a.life.isDone() {
				<-c.done
			} else {
				c.flush()
			}
			return nil
		}
	}
}

// copyInput passes the client's input on until it ends, the process does not
// read any more, or stop is closed.
func (a *attachment) copyInput(stop <-chan struct{}) error {
	src := a.s.Stdin
	if a.life.terminal {
		src = &escapeReader{r: src, keys: a.keys}
	}
	_, err := io.Copy(lifeWriter{a.life, stop}, src)
	if errors.Is(err, io.ErrClosedPipe) {
		err = nil
	}
	return err
}

// lifeWriter writes to a life's input; before its start it waits, at most until
// the client is gone.
type lifeWriter struct {
	*stdio
	stop <-chan struct{}
}

func (w lifeWriter) Write(b []byte) (int, error) {
	select {
	case <-w.ready:
	case <-w.stop:
		return 0, io.ErrClosedPipe
	}
	return w.write(b)
}

// isDone reports whether the life has ended.
func (s *stdio) isDone() bool {
	select {
	case <-s.done:
		return true
	default:
		return false
	}
}

// flush waits until the client has what is queued for it, a moment at most.
func (c *client) flush() {
	deadline := time.AfterFunc(time.Second, c.kill)
	defer deadline.Stop()
	c.mu.Lock()
	defer c.mu.Unlock()
	for c.size > 0 && !c.dead {
		c.cond.Wait()
	}
}

// ContainerResize sets the size of a container's terminal.
func (e *Engine) ContainerResize(ctx context.Context, id string, height, width uint) error {
	b, err := e.get(id)
	if err != nil {
		return err
	}
	b.mu.Lock()
	task := b.task
	b.mu.Unlock()
	if task == nil {
		return notRunning(b.id)
	}
	if err := task.Resize(uint16(width), uint16(height)); err != nil {
		return err
	}
	e.event(b, events.ActionResize, sizeAttributes(height, width))
	return nil
}
