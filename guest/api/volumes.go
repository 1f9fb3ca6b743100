//go:build linux

package api

import (
	"net/http"

	"dhow/internal/errdefs"

	"github.com/moby/moby/api/types/build"
	"github.com/moby/moby/api/types/volume"
)

// There are no volumes and no build cache yet, and these say so truly: clients
// ask for them on their way to other things (system df, system prune, compose).

func (s *server) volumeList(c *call) error {
	if _, err := c.filters(); err != nil {
		return err
	}
	return c.json(http.StatusOK, volume.ListResponse{Volumes: []volume.Volume{}})
}

func (s *server) volumeInspect(c *call) error {
	return errdefs.New(errdefs.NotFound, "get %s: no such volume", c.name)
}

func (s *server) volumePrune(c *call) error {
	if _, err := c.filters(); err != nil {
		return err
	}
	return c.json(http.StatusOK, volume.PruneReport{VolumesDeleted: []string{}})
}

func (s *server) buildPrune(c *call) error {
	return c.json(http.StatusOK, build.CachePruneReport{CachesDeleted: []string{}})
}
