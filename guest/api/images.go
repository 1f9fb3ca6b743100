//go:build linux

package api

import (
	"net/http"
	"strings"

	"dhow/guest/engine"
	"dhow/internal/errdefs"

	"github.com/moby/moby/api/types/image"
)

func (s *server) imageList(c *call) error {
	f, err := c.filters()
	if err != nil {
		return err
	}
	if old := c.query.Get("filter"); old != "" && c.version < v1(41) && len(f["reference"]) == 0 {
		if f == nil {
			f = engine.Filters{}
		}
		f["reference"] = map[string]bool{old: true}
	}
	list, err := s.Images.ImageList(c.ctx(), c.flag("all"), f)
	if err != nil {
		return err
	}
	return c.json(http.StatusOK, shapeImages(list, c.version))
}

func (s *server) imageInspect(c *call) error {
	if p := c.query.Get("platform"); p != "" && c.version >= v1(49) {
		return errdefs.New(errdefs.Unimplemented, "dhow does not serve inspecting another platform of an image yet")
	}
	r, err := s.Images.ImageInspect(c.ctx(), c.name)
	if err != nil {
		return err
	}
	return c.json(http.StatusOK, shapeImage(r, c.version))
}

func (s *server) imageHistory(c *call) error {
	h, err := s.Images.ImageHistory(c.ctx(), c.name)
	if err != nil {
		return err
	}
	if h == nil {
		h = []image.HistoryResponseItem{}
	}
	return c.json(http.StatusOK, h)
}

func (s *server) imageTag(c *call) error {
	repo, tag := c.query.Get("repo"), c.query.Get("tag")
	if repo == "" {
		return errdefs.New(errdefs.Invalid, "invalid reference format")
	}
	if err := s.Images.ImageTag(c.ctx(), c.name, repo, tag); err != nil {
		return err
	}
	c.status(http.StatusCreated)
	return nil
}

func (s *server) imageRemove(c *call) error {
	if strings.TrimSpace(c.name) == "" {
		return errdefs.New(errdefs.Invalid, "image name cannot be blank")
	}
	list, err := s.Images.ImageRemove(c.ctx(), c.name, c.flag("force"), c.flag("noprune"))
	if err != nil {
		return err
	}
	if list == nil {
		list = []image.DeleteResponse{}
	}
	return c.json(http.StatusOK, list)
}
