//go:build linux

package api

import (
	"net/http"

	"dhow/guest/engine"
	"dhow/internal/errdefs"

	"github.com/moby/moby/api/types/container"
)

func (s *server) execCreate(c *call) error {
	var o engine.ExecOptions
	if err := c.decode(&o.ExecCreateRequest); err != nil {
		return err
	}
	if len(o.Cmd) == 0 {
		return errdefs.New(errdefs.Invalid, "No exec command specified")
	}
	if c.version < v1(42) {
		o.ConsoleSize = nil
	}
	id, err := s.Execs.ExecCreate(c.ctx(), c.name, o)
	if err != nil {
		return err
	}
	return c.json(http.StatusCreated, container.ExecCreateResponse{ID: id})
}

func (s *server) execStart(c *call) error {
	var req container.ExecStartRequest
	if err := c.decode(&req); err != nil {
		return err
	}
	if c.version < v1(42) || !req.Tty {
		req.ConsoleSize = nil
	}
	o := engine.ExecStartOptions{Detach: req.Detach, Tty: req.Tty, ConsoleSize: req.ConsoleSize}
	if req.Detach {
		if err := s.Execs.ExecStart(c.ctx(), c.name, o); err != nil {
			return err
		}
		c.status(http.StatusOK)
		return nil
	}
	// What is wrong with the request is an HTTP error. What goes wrong with the
	// program (it is not there, it cannot be run) goes to the stream, where
	// clients print it; they take the exit code from the exec's state.
	ex, err := s.Execs.ExecInspect(c.ctx(), c.name)
	if err != nil {
		return err
	}
	var h *hijacked
	var st engine.AttachStreams
	o.Streams = func(terminal bool) (_ engine.AttachStreams, err error) {
		h, st, err = c.streams(terminal, ex.OpenStdin)
		return st, err
	}
	defer func() { // also of a panic
		if h != nil {
			h.close()
		}
	}()
	err = s.Execs.ExecStart(c.ctx(), c.name, o)
	if err != nil && h == nil {
		if errdefs.Is(err, errdefs.Conflict) || errdefs.Is(err, errdefs.NotModified) || c.started {
			return err
		}
		if _, serr := o.Streams(req.Tty); serr != nil {
			return err
		}
	}
	if err != nil {
		complain(st, err)
	}
	return inBand(err)
}

func (s *server) execResize(c *call) error {
	h, w, err := c.size()
	if err != nil {
		return err
	}
	if err := s.Execs.ExecResize(c.ctx(), c.name, h, w); err != nil {
		return err
	}
	c.status(http.StatusOK)
	return nil
}

func (s *server) execInspect(c *call) error {
	ex, err := s.Execs.ExecInspect(c.ctx(), c.name)
	if err != nil {
		return err
	}
	return c.json(http.StatusOK, ex)
}
