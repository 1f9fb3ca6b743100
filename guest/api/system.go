//go:build linux

package api

import (
	"errors"
	"io"
	"net/http"
	"strconv"

	"dhow/internal/errdefs"

	"github.com/moby/moby/api/types/build"
	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/image"
	"github.com/moby/moby/api/types/registry"
	"github.com/moby/moby/api/types/swarm"
	"github.com/moby/moby/api/types/system"
	"github.com/moby/moby/api/types/volume"
)

// ping answers what clients ask first. Builder-Version names the builder that
// they should use: 1, the classic one, until BuildKit is served.
func (s *server) ping(c *call) error {
	h := c.w.Header()
	h.Set("Cache-Control", "no-cache, no-store, must-revalidate")
	h.Set("Pragma", "no-cache")
	h.Set("Builder-Version", string(build.BuilderV1))
	h.Set("Swarm", string(swarm.LocalNodeStateInactive))
	h.Set("Content-Type", "text/plain; charset=utf-8")
	if c.r.Method == http.MethodHead {
		h.Set("Content-Length", "0")
		c.status(http.StatusOK)
		return nil
	}
	c.status(http.StatusOK)
	_, err := io.WriteString(c.w, "OK")
	return inBand(err)
}

func (s *server) info(c *call) error {
	info, err := s.System.Info(c.ctx())
	if err != nil {
		return err
	}
	return c.json(http.StatusOK, shapeInfo(info, c.version))
}

// systemVersion answers with the engine's versions; those of the API are ours.
func (s *server) systemVersion(c *call) error {
	v, err := s.System.Version(c.ctx())
	if err != nil {
		return err
	}
	v.APIVersion, v.MinAPIVersion = Version, MinVersion
	for i, comp := range v.Components {
		if comp.Name != "Engine" {
			continue
		}
		d := map[string]string{"ApiVersion": Version, "MinAPIVersion": MinVersion}
		for k, val := range comp.Details {
			if d[k] == "" {
				d[k] = val
			}
		}
		v.Components[i].Details = d
	}
	return c.json(http.StatusOK, v)
}

func (s *server) auth(c *call) error {
	var a registry.AuthConfig
	if err := c.decode(&a); err != nil {
		return err
	}
	status, token, err := s.System.Auth(c.ctx(), a)
	if errdefs.Is(err, errdefs.Denied) {
		return withStatus(http.StatusUnauthorized, err) // what clients know bad credentials by
	}
	if err != nil {
		return err
	}
	return c.json(http.StatusOK, registry.AuthResponse{Status: status, IdentityToken: token})
}

// diskUsage152 is the answer of API 1.52: sums by kind, and for clients that do
// not say "verbose" also the whole lists that were all of it before.
type diskUsage152 struct {
	*system.DiskUsage
	LayersSize int64               `json:",omitempty"`
	Images     any                 `json:",omitempty"`
	Containers []container.Summary `json:",omitzero"`
	Volumes    []volume.Volume     `json:",omitzero"`
	BuildCache []build.CacheRecord `json:",omitzero"`
}

func (s *server) diskUsage(c *call) error {
	types := c.query["type"]
	all := len(types) == 0 || c.version < v1(42)
	want := map[system.DiskUsageObject]bool{}
	for _, t := range types {
		switch o := system.DiskUsageObject(t); o {
		case system.ContainerObject, system.ImageObject, system.VolumeObject, system.BuildCacheObject:
			want[o] = true
		default:
			if !all {
				return errdefs.New(errdefs.Invalid, "unknown object type: %s", t)
			}
		}
	}
	verbose, lists := true, true
	if v := c.query.Get("verbose"); v != "" && c.version >= v1(52) {
		var err error
		if verbose, err = strconv.ParseBool(v); err != nil {
			return errdefs.Wrap(errdefs.Invalid, errors.Unwrap(err), "invalid value for verbose: %s", v)
		}
		lists = false
	}
	du, err := s.System.DiskUsage(c.ctx())
	if err != nil {
		return err
	}
	answer := diskUsage152{DiskUsage: &system.DiskUsage{}}
	if all || want[system.ImageObject] {
		u := image.DiskUsage{}
		if du.ImageUsage != nil {
			u = *du.ImageUsage
		}
		if lists {
			answer.LayersSize, answer.Images = u.TotalSize, shapeImages(u.Items, c.version)
		}
		if lists || !verbose {
			u.Items = nil
		}
		answer.ImageUsage = &u
	}
	if all || want[system.ContainerObject] {
		u := container.DiskUsage{}
		if du.ContainerUsage != nil {
			u = *du.ContainerUsage
		}
		for i := range u.Items {
			shapeSummary(&u.Items[i], c.version)
		}
		if lists {
			answer.Containers = append([]container.Summary{}, u.Items...)
		}
		if lists || !verbose {
			u.Items = nil
		}
		answer.ContainerUsage = &u
	}
	if all || want[system.VolumeObject] {
		u := volume.DiskUsage{}
		if du.VolumeUsage != nil {
			u = *du.VolumeUsage
		}
		if lists {
			answer.Volumes = append([]volume.Volume{}, u.Items...)
		}
		if lists || !verbose {
			u.Items = nil
		}
		answer.VolumeUsage = &u
	}
	if all || want[system.BuildCacheObject] {
		u := build.DiskUsage{}
		if du.BuildCacheUsage != nil {
			u = *du.BuildCacheUsage
		}
		if lists {
			answer.BuildCache = append([]build.CacheRecord{}, u.Items...)
		}
		if lists || !verbose {
			u.Items = nil
		}
		answer.BuildCacheUsage = &u
	}
	if c.version < v1(52) {
		answer.DiskUsage = nil // not known then
	}
	return c.json(http.StatusOK, answer)
}
