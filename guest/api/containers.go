//go:build linux

package api

import (
	"encoding/json"
	"net/http"
	"strings"

	"dhow/guest/engine"
	"dhow/internal/errdefs"

	"github.com/moby/moby/api/types/container"
)

func (s *server) containerList(c *call) error {
	f, err := c.filters()
	if err != nil {
		return err
	}
	// The parameters of before filters; they are still served.
	for _, old := range []string{"since", "before"} {
		if v := c.query.Get(old); v != "" {
			if f == nil {
				f = engine.Filters{}
			}
			f[old] = map[string]bool{v: true}
		}
	}
	limit, err := c.int("limit")
	if err != nil {
		return err
	}
	o := engine.ListOptions{All: c.flag("all"), Size: c.flag("size"), Filters: f}
	if limit != nil && *limit > 0 {
		o.Limit = *limit
		o.All = true // as dockerd: the last n, whatever their state
	}
	list, err := s.Containers.ContainerList(c.ctx(), o)
	if err != nil {
		return err
	}
	if list == nil {
		list = []container.Summary{}
	}
	for i := range list {
		shapeSummary(&list[i], c.version)
	}
	return c.json(http.StatusOK, list)
}

func (s *server) containerInspect(c *call) error {
	r, err := s.Containers.ContainerInspect(c.ctx(), c.name, c.flag("size"))
	if err != nil {
		return err
	}
	return c.json(http.StatusOK, shapeInspect(r, c.version))
}

func (s *server) containerTop(c *call) error {
	top, err := s.Containers.ContainerTop(c.ctx(), c.name, strings.Fields(c.query.Get("ps_args")))
	if err != nil {
		return err
	}
	return c.json(http.StatusOK, top)
}

func (s *server) containerStart(c *call) error {
	if c.r.ContentLength > 7 || c.r.ContentLength == -1 {
		return errdefs.New(errdefs.Invalid, "starting container with non-empty request body was deprecated since API v1.22 and removed in v1.24")
	}
	if c.query.Get("checkpoint") != "" {
		return errdefs.New(errdefs.Unimplemented, "dhow does not serve checkpoints yet")
	}
	return c.done(s.Containers.ContainerStart(c.ctx(), c.name))
}

// done ends a request whose success has no content.
func (c *call) done(err error) error {
	if err != nil {
		return err
	}
	c.status(http.StatusNoContent)
	return nil
}

func (c *call) stopOptions() (o engine.StopOptions, err error) {
	if c.version >= v1(42) {
		o.Signal = c.query.Get("signal")
	}
	o.Timeout, err = c.int("t")
	return o, err
}

func (s *server) containerStop(c *call) error {
	o, err := c.stopOptions()
	if err != nil {
		return err
	}
	return c.done(s.Containers.ContainerStop(c.ctx(), c.name, o))
}

func (s *server) containerRestart(c *call) error {
	o, err := c.stopOptions()
	if err != nil {
		return err
	}
	return c.done(s.Containers.ContainerRestart(c.ctx(), c.name, o))
}

func (s *server) containerKill(c *call) error {
	err := s.Containers.ContainerKill(c.ctx(), c.name, c.query.Get("signal"))
	return c.done(err)
}

func (s *server) containerPause(c *call) error {
	return c.done(s.Containers.ContainerPause(c.ctx(), c.name))
}

func (s *server) containerUnpause(c *call) error {
	return c.done(s.Containers.ContainerUnpause(c.ctx(), c.name))
}

func (s *server) containerRename(c *call) error {
	return c.done(s.Containers.ContainerRename(c.ctx(), c.name, c.query.Get("name")))
}

// size returns the parameters of a resize.
func (c *call) size() (height, width uint, err error) {
	if height, err = c.uint32("h", "resize height"); err != nil {
		return 0, 0, err
	}
	width, err = c.uint32("w", "resize width")
	return height, width, err
}

func (s *server) containerResize(c *call) error {
	h, w, err := c.size()
	if err != nil {
		return err
	}
	if err := s.Containers.ContainerResize(c.ctx(), c.name, h, w); err != nil {
		return err
	}
	c.status(http.StatusOK)
	return nil
}

func (s *server) containerRemove(c *call) error {
	return c.done(s.Containers.ContainerRemove(c.ctx(), c.name, engine.RemoveOptions{
		Force: c.flag("force"), Volumes: c.flag("v"), Link: c.flag("link"),
	}))
}

func (s *server) containerPrune(c *call) error {
	f, err := c.filters()
	if err != nil {
		return err
	}
	report, err := s.Containers.ContainerPrune(c.ctx(), f)
	if err != nil {
		return err
	}
	return c.json(http.StatusOK, report)
}

// containerWait answers in two parts: the header when the wait is armed, so
// that a client may start the container after it and miss nothing, and the
// body when it ends.
func (s *server) containerWait(c *call) error {
	cond := container.WaitConditionNotRunning
	early := c.version >= v1(30) // older clients take no header before the result
	if v := container.WaitCondition(c.query.Get("condition")); early && v != "" {
		switch v {
		case container.WaitConditionNotRunning, container.WaitConditionNextExit, container.WaitConditionRemoved:
			cond = v
		default:
			return errdefs.New(errdefs.Invalid, "invalid condition: %q", v)
		}
	}
	result, err := s.Containers.ContainerWait(c.ctx(), c.name, cond)
	if err != nil {
		return err
	}
	c.w.Header().Set("Content-Type", "application/json")
	if early {
		c.status(http.StatusOK)
		c.flush()
	}
	var r engine.WaitResult
	select {
	case r = <-result:
	case <-c.ctx().Done():
		return inBand(c.ctx().Err())
	}
	c.started = true
	resp := container.WaitResponse{StatusCode: int64(r.ExitCode)}
	if r.Err != nil {
		if cond == container.WaitConditionRemoved && c.version < v1(34) {
			return inBand(r.Err) // those clients know an error only by an empty answer
		}
		resp.Error = &container.WaitExitError{Message: errdefs.Sentence(r.Err)}
	}
	return inBand(json.NewEncoder(c.w).Encode(resp))
}
