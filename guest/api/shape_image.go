//go:build linux

package api

import (
	"time"

	dockerspec "github.com/moby/docker-image-spec/specs-go/v1"
	"github.com/moby/moby/api/types/image"
)

// summary143 is an image of a list up to API 1.43.
type summary143 struct {
	image.Summary
	VirtualSize int64
}

// shapeImages returns what to encode for a list of images.
func shapeImages(list []image.Summary, v version) any {
	if list == nil {
		list = []image.Summary{}
	}
	for i := range list {
		im := &list[i]
		if v < v1(43) && len(im.RepoTags) == 0 && len(im.RepoDigests) == 0 {
			im.RepoTags, im.RepoDigests = []string{"<none>:<none>"}, []string{"<none>@<none>"}
		}
		if im.RepoTags == nil {
			im.RepoTags = []string{}
		}
		if im.RepoDigests == nil {
			im.RepoDigests = []string{}
		}
		if v < v1(47) {
			im.Manifests = nil
		}
		if v < v1(48) {
			im.Descriptor = nil
		}
		if v < v1(51) {
			im.Containers = -1
		}
	}
	if v >= v1(44) {
		return list
	}
	old := make([]summary143, len(list))
	for i, im := range list {
		old[i] = summary143{im, im.Size}
	}
	return old
}

// image151 is what inspecting an image gave in API 1.50 and 1.51; the others
// are those of before, each with what its next version dropped.
type image151 struct {
	*image.InspectResponse
	Parent        string
	Comment       string
	DockerVersion string
	Author        string
	Config        any
}

type image144 struct {
	image151
	Container       string
	ContainerConfig any
}

type image143 struct {
	image144
	Created     string
	VirtualSize int64
}

// config151 is an image's configuration up to API 1.51, where fields that are
// not set were null or "" and not left out.
type config151 struct {
	*dockerspec.DockerOCIImageConfig
	Cmd        []string
	Entrypoint []string
	Env        []string
	Labels     map[string]string
	OnBuild    []string
	User       string
	Volumes    map[string]struct{}
	WorkingDir string
}

// config149 is that of up to API 1.49, with the fields of a container's
// configuration that an image never sets.
type config149 struct {
	config151
	Hostname     string
	Domainname   string
	AttachStdin  bool
	AttachStdout bool
	AttachStderr bool
	Tty          bool
	OpenStdin    bool
	StdinOnce    bool
	Image        string
}

// shapeImage returns what to encode for an inspected image.
func shapeImage(r image.InspectResponse, v version) any {
	if r.RepoTags == nil {
		r.RepoTags = []string{}
	}
	if r.RepoDigests == nil {
		r.RepoDigests = []string{}
	}
	if v < v1(48) {
		r.Descriptor, r.Manifests = nil, nil
	}
	if v >= v1(52) {
		return r
	}
	cfg := r.Config
	if cfg == nil {
		cfg = &dockerspec.DockerOCIImageConfig{}
	}
	var config any
	c151 := config151{DockerOCIImageConfig: cfg, Cmd: cfg.Cmd, Entrypoint: cfg.Entrypoint, Env: cfg.Env, Labels: cfg.Labels,
		OnBuild: cfg.OnBuild, User: cfg.User, Volumes: cfg.Volumes, WorkingDir: cfg.WorkingDir}
	config = c151
	if v < v1(50) {
		config = config149{config151: c151}
	}
	r151 := image151{InspectResponse: &r, Comment: r.Comment, Author: r.Author, Config: config}
	if v >= v1(45) {
		return r151
	}
	r144 := image144{image151: r151, ContainerConfig: config}
	if v >= v1(44) {
		return r144
	}
	created := r.Created
	if created == "" {
		created = time.Time{}.Format(time.RFC3339Nano)
	}
	return image143{image144: r144, Created: created, VirtualSize: r.Size}
}
