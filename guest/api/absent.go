//go:build linux

package api

import (
	"net/http"

	"dhow/internal/errdefs"

	"github.com/moby/moby/api/types/plugin"
)

// notYet answers a request for what dhow does not do yet.
func notYet(what string) func(*server, *call) error {
	return func(*server, *call) error {
		return errdefs.New(errdefs.Unimplemented, "dhow does not serve %s yet", what)
	}
}

// A node outside a swarm answers with these; dhow is always one.

func notManager(*server, *call) error {
	return errdefs.New(errdefs.Unavailable, "This node is not a swarm manager. Use \"docker swarm init\" or \"docker swarm join\" to connect this node to swarm and try again.")
}

func notInSwarm(*server, *call) error {
	return errdefs.New(errdefs.Unavailable, "This node is not part of a swarm")
}

func noSwarm(*server, *call) error {
	return errdefs.New(errdefs.Unimplemented, "dhow runs one machine: it does not do swarm mode")
}

func (s *server) pluginList(c *call) error {
	return c.json(http.StatusOK, plugin.ListResponse{})
}

func (s *server) pluginInspect(c *call) error {
	return errdefs.New(errdefs.NotFound, "plugin %q not found", c.name)
}
