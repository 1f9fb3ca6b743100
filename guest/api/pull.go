//go:build linux

package api

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"net/http"
	"strings"

	"dhow/guest/engine"
	"dhow/internal/errdefs"

	"github.com/moby/moby/api/types/jsonstream"
	"github.com/moby/moby/api/types/registry"
)

// imageCreate pulls an image, with its progress as a stream of messages.
func (s *server) imageCreate(c *call) error {
	from := strings.TrimSuffix(c.query.Get("fromImage"), ":") // "pull -a" may send one
	if from == "" {
		return errdefs.New(errdefs.Unimplemented, "dhow does not serve import yet")
	}
	o := engine.PullOptions{Auth: registryAuth(c.r.Header.Get(registry.AuthHeader))}
	var err error
	if c.version >= v1(32) {
		if o.Platform, err = c.platform(); err != nil {
			return err
		}
	}
	tag := c.query.Get("tag")
	o.Ref, o.All = joinRef(from, tag), tag == "" && !named(from)
	if repo, _, _ := strings.Cut(from, ":"); repo == "scratch" {
		return withStatus(http.StatusForbidden, errdefs.New(errdefs.Denied, "'scratch' is a reserved name"))
	}
	p := c.progress()
	if !o.All {
		p.title = pullTitle(o.Ref)
	}
	o.Progress = p.report
	res, err := s.Images.ImagePull(c.ctx(), o)
	if err != nil {
		if !p.begun() {
			return err
		}
		p.fail(err)
		return inBand(err)
	}
	if res.Digest != "" {
		p.line("", "Digest: "+res.Digest)
	}
	if res.Newer {
		p.line("", "Status: Downloaded newer image for "+res.Ref)
	} else {
		p.line("", "Status: Image is up to date for "+res.Ref)
	}
	return inBand(p.err)
}

// joinRef puts a tag or a digest behind a repository's name. A tag in the name
// gives way to it.
func joinRef(name, tag string) string {
	if tag == "" {
		return name
	}
	name, _, _ = strings.Cut(name, "@")
	if i := strings.LastIndexByte(name, ':'); i > strings.LastIndexByte(name, '/') {
		name = name[:i]
	}
	if strings.Contains(tag, ":") {
		return name + "@" + tag
	}
	return name + ":" + tag
}

// pullTitle is the first line of a pull: the tag or digest, and the repository
// without its registry.
func pullTitle(ref string) jsonstream.Message {
	repo, tag, digested := strings.Cut(ref, "@")
	if !digested {
		tag = "latest"
	}
	if i := strings.LastIndexByte(repo, ':'); i > strings.LastIndexByte(repo, '/') {
		if !digested {
			tag = repo[i+1:]
		}
		repo = repo[:i]
	}
	registry, path, ok := strings.Cut(repo, "/")
	if !ok || (!strings.ContainsAny(registry, ".:") && registry != "localhost") {
		registry, path = "docker.io", repo
	}
	if registry == "docker.io" && !strings.Contains(path, "/") {
		path = "library/" + path
	}
	return jsonstream.Message{ID: tag, Status: "Pulling from " + path}
}

// named reports whether a reference has a tag or a digest of its own.
func named(ref string) bool {
	return strings.Contains(ref, "@") || strings.LastIndexByte(ref, ':') > strings.LastIndexByte(ref, '/')
}

// registryAuth decodes the X-Registry-Auth header. Like dockerd's, it takes one
// that cannot be read for none: a pull may well do without.
func registryAuth(header string) (a registry.AuthConfig) {
	b, err := base64.URLEncoding.DecodeString(header)
	if err != nil {
		if b, err = base64.RawURLEncoding.DecodeString(header); err != nil {
			return registry.AuthConfig{}
		}
	}
	if json.Unmarshal(b, &a) != nil {
		return registry.AuthConfig{}
	}
	if a.Auth != "" && a.Username == "" { // "user:password" in base64
		if up, err := base64.StdEncoding.DecodeString(a.Auth); err == nil {
			a.Username, a.Password, _ = strings.Cut(strings.TrimRight(string(up), "\x00"), ":")
		}
	}
	return a
}

// imageLoad loads an archive, which the body streams.
func (s *server) imageLoad(c *call) error {
	p := c.progress()
	report := func(engine.Progress) {}
	if !c.flagOr("quiet", true) {
		report = p.report
	}
	names, err := s.Images.ImageLoad(c.ctx(), c.r.Body, report)
	if err != nil {
		if !p.begun() && context.Cause(c.ctx()) == nil {
			return err
		}
		p.fail(err)
		return inBand(err)
	}
	for _, n := range names {
		verb := "Loaded image: "
		if strings.HasPrefix(n, "sha256:") {
			verb = "Loaded image ID: "
		}
		p.message(jsonstream.Message{Stream: verb + n + "\n"})
	}
	return inBand(p.err)
}
