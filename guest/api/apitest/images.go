//go:build linux

package apitest

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"io"
	"slices"
	"strings"
	"sync"
	"time"

	"dhow/guest/engine"
	"dhow/internal/errdefs"

	dockerspec "github.com/moby/docker-image-spec/specs-go/v1"
	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/events"
	"github.com/moby/moby/api/types/image"
	"github.com/moby/moby/api/types/network"
	"github.com/moby/moby/api/types/registry"
	"github.com/moby/moby/api/types/system"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// img is an image.
type img struct {
	id   string
	tags []string
	size int64
}

func newImage(name string, size int64) *img {
	sum := sha256.Sum256([]byte(name))
	return &img{id: "sha256:" + hex.EncodeToString(sum[:]), tags: []string{name}, size: size}
}

// withTag is the familiar form of a name, with its tag.
func withTag(name string) string {
	name = strings.TrimPrefix(strings.TrimPrefix(name, "docker.io/"), "library/")
	if strings.LastIndexByte(name, ':') > strings.LastIndexByte(name, '/') {
		return name
	}
	return name + ":latest"
}

func (e *Engine) findImage(name string) (*img, error) {
	for _, im := range e.images {
		if slices.Contains(im.tags, withTag(name)) || im.id == name || strings.HasPrefix(im.id, "sha256:"+name) {
			return im, nil
		}
	}
	return nil, errdefs.New(errdefs.NotFound, "No such image: %s", withTag(name))
}

// ImagePull implements api.Images. There is every image but those whose name
// begins with "missing"; one that begins with "broken" fails half-way.
func (e *Engine) ImagePull(_ context.Context, o engine.PullOptions) (engine.PullResult, error) {
	if err := e.enter("ImagePull", o); err != nil {
		return engine.PullResult{}, err
	}
	o.Ref = withTag(o.Ref)
	if strings.HasPrefix(o.Ref, "missing") {
		return engine.PullResult{}, errdefs.New(errdefs.NotFound, "pull access denied for %s, repository does not exist or may require 'docker login'", o.Ref)
	}
	var layers sync.WaitGroup
	for _, id := range []string{"aaaaaaaaaaaa", "bbbbbbbbbbbb"} {
		layers.Go(func() {
			o.Progress(engine.Progress{ID: id, Action: "Pulling fs layer"})
			for n := int64(0); n <= 100; n += 10 {
				o.Progress(engine.Progress{ID: id, Action: "Downloading", Current: n, Total: 100})
			}
			o.Progress(engine.Progress{ID: id, Action: "Pull complete"})
		})
	}
	layers.Wait()
	if strings.HasPrefix(o.Ref, "broken") {
		return engine.PullResult{}, errdefs.New(errdefs.Unavailable, "the registry hung up")
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	name := withTag(o.Ref)
	_, err := e.findImage(name)
	newer := err != nil
	if newer {
		e.images = append(e.images, newImage(name, 1000))
	}
	return engine.PullResult{Digest: newImage(name, 0).id, Newer: newer, Ref: name}, nil
}

// ImageLoad implements api.Images: the archive is the image's name.
func (e *Engine) ImageLoad(_ context.Context, r io.Reader, progress func(engine.Progress)) ([]string, error) {
	if err := e.enter("ImageLoad", nil); err != nil {
		return nil, err
	}
	b, err := io.ReadAll(r)
	if err != nil {
		return nil, err
	}
	if len(b) == 0 {
		return nil, errdefs.New(errdefs.Invalid, "unexpected EOF")
	}
	progress(engine.Progress{ID: "cccccccccccc", Action: "Loading layer", Current: int64(len(b)), Total: int64(len(b))})
	e.mu.Lock()
	defer e.mu.Unlock()
	e.images = append(e.images, newImage(string(b), 7))
	return []string{string(b)}, nil
}

// ImageList implements api.Images. It knows no filters.
func (e *Engine) ImageList(_ context.Context, all bool, f engine.Filters) (list []image.Summary, err error) {
	if err := e.enter("ImageList", f); err != nil {
		return nil, err
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	for _, im := range e.images {
		list = append(list, image.Summary{ID: im.id, RepoTags: im.tags, Size: im.size, Created: 1700000000, SharedSize: -1, Containers: 1,
			Descriptor: &ocispec.Descriptor{MediaType: ocispec.MediaTypeImageManifest, Size: 1}})
	}
	return list, nil
}

// ImageInspect implements api.Images.
func (e *Engine) ImageInspect(_ context.Context, name string) (r image.InspectResponse, err error) {
	if err := e.enter("ImageInspect", name); err != nil {
		return r, err
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	im, err := e.findImage(name)
	if err != nil {
		return r, err
	}
	return image.InspectResponse{ID: im.id, RepoTags: im.tags, Size: im.size, Architecture: "amd64", Os: "linux", Created: "2023-11-14T22:13:20Z",
		Config: &dockerspec.DockerOCIImageConfig{ImageConfig: ocispec.ImageConfig{Cmd: []string{"/hello"}}}, RootFS: image.RootFS{Type: "layers"},
		Descriptor: &ocispec.Descriptor{MediaType: ocispec.MediaTypeImageManifest, Size: 1}}, nil
}

// ImageHistory implements api.Images.
func (e *Engine) ImageHistory(_ context.Context, name string) ([]image.HistoryResponseItem, error) {
	if err := e.enter("ImageHistory", name); err != nil {
		return nil, err
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	im, err := e.findImage(name)
	if err != nil {
		return nil, err
	}
	return []image.HistoryResponseItem{{ID: im.id, CreatedBy: "COPY hello /", Size: im.size, Tags: im.tags}}, nil
}

// ImageTag implements api.Images.
func (e *Engine) ImageTag(_ context.Context, name, repo, tag string) error {
	if err := e.enter("ImageTag", [2]string{repo, tag}); err != nil {
		return err
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	im, err := e.findImage(name)
	if err != nil {
		return err
	}
	if tag != "" {
		repo += ":" + tag
	}
	im.tags = append(im.tags, withTag(repo))
	return nil
}

// ImageRemove implements api.Images.
func (e *Engine) ImageRemove(_ context.Context, name string, force, noPrune bool) ([]image.DeleteResponse, error) {
	if err := e.enter("ImageRemove", [2]bool{force, noPrune}); err != nil {
		return nil, err
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	im, err := e.findImage(name)
	if err != nil {
		return nil, err
	}
	e.images = slices.DeleteFunc(e.images, func(o *img) bool { return o == im })
	return []image.DeleteResponse{{Untagged: withTag(name)}, {Deleted: im.id}}, nil
}

// builtin are the networks.
func builtin() []network.Inspect {
	var list []network.Inspect
	for _, d := range []string{"bridge", "host", "none"} {
		sum := sha256.Sum256([]byte(d))
		n := network.Inspect{Network: network.Network{Name: d, ID: hex.EncodeToString(sum[:]), Scope: "local", Driver: d, EnableIPv4: true, Created: time.Unix(1700000000, 0).UTC()},
			Status: &network.Status{}}
		list = append(list, n)
	}
	list[2].Driver = "null"
	return list
}

// NetworkList implements api.Networks.
func (e *Engine) NetworkList(_ context.Context, f engine.Filters) ([]network.Inspect, error) {
	if err := e.enter("NetworkList", f); err != nil {
		return nil, err
	}
	return builtin(), nil
}

// NetworkInspect implements api.Networks.
func (e *Engine) NetworkInspect(_ context.Context, name string) (network.Inspect, error) {
	if err := e.enter("NetworkInspect", name); err != nil {
		return network.Inspect{}, err
	}
	for _, n := range builtin() {
		if n.Name == name || strings.HasPrefix(n.ID, name) {
			return n, nil
		}
	}
	return network.Inspect{}, errdefs.New(errdefs.NotFound, "network %s not found", name)
}

// Info implements api.System.
func (e *Engine) Info(context.Context) (system.Info, error) {
	if err := e.enter("Info", nil); err != nil {
		return system.Info{}, err
	}
	return system.Info{ID: "fake", Name: "fake", Driver: "overlayfs", NCPU: 1, MemTotal: 1 << 30, OSType: "linux", Architecture: "x86_64", ServerVersion: "0.0.1",
		CgroupVersion: "2", LoggingDriver: "json-file", RuncCommit: system.Commit{ID: "dhow"},
		Runtimes: map[string]system.RuntimeWithStatus{"dhow": {Status: map[string]string{"a": "b"}}}, FirewallBackend: &system.FirewallInfo{Driver: "nftables"}}, nil
}

// Version implements api.System.
func (e *Engine) Version(context.Context) (system.VersionResponse, error) {
	if err := e.enter("Version", nil); err != nil {
		return system.VersionResponse{}, err
	}
	return system.VersionResponse{Version: "0.0.1", Os: "linux", Arch: "amd64", Components: []system.ComponentVersion{{Name: "Engine", Version: "0.0.1", Details: map[string]string{"Os": "linux"}}}}, nil
}

// Auth implements api.System: the password is "right".
func (e *Engine) Auth(_ context.Context, a registry.AuthConfig) (status, token string, err error) {
	if err := e.enter("Auth", a); err != nil {
		return "", "", err
	}
	if a.Password != "right" {
		return "", "", errdefs.New(errdefs.Denied, "unauthorized: incorrect username or password")
	}
	return "Login Succeeded", "", nil
}

// DiskUsage implements api.System.
func (e *Engine) DiskUsage(ctx context.Context) (system.DiskUsage, error) {
	if err := e.enter("DiskUsage", nil); err != nil {
		return system.DiskUsage{}, err
	}
	images, _ := e.ImageList(ctx, true, nil)
	boxes, _ := e.ContainerList(ctx, engine.ListOptions{All: true})
	return system.DiskUsage{
		ImageUsage:     &image.DiskUsage{TotalCount: int64(len(images)), TotalSize: 13336, Items: images},
		ContainerUsage: &container.DiskUsage{TotalCount: int64(len(boxes)), Items: boxes},
	}, nil
}

// emit is called with e.mu held.
func (e *Engine) emit(t events.Type, a events.Action, id string, attrs map[string]string) {
	now := time.Now()
	m := events.Message{Type: t, Action: a, Actor: events.Actor{ID: id, Attributes: attrs}, Scope: "local", Time: now.Unix(), TimeNano: now.UnixNano()}
	e.past = append(e.past, m)
	for s := range e.subs {
		select {
		case s <- m:
		default: // a reader that is 64 behind loses, as docker's does
		}
	}
}

// Emit makes an event.
func (e *Engine) Emit(t events.Type, a events.Action, id string, attrs map[string]string) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.emit(t, a, id, attrs)
}

// Events implements api.System.
func (e *Engine) Events(ctx context.Context, o engine.EventOptions, emit func(events.Message) error) error {
	if err := e.enter("Events", o); err != nil {
		return err
	}
	live := make(chan events.Message, 64)
	e.mu.Lock()
	var past []events.Message
	for _, m := range e.past {
		if !o.Since.IsZero() && m.TimeNano >= o.Since.UnixNano() && (o.Until.IsZero() || m.TimeNano <= o.Until.UnixNano()) {
			past = append(past, m)
		}
	}
	e.subs[live] = true
	e.mu.Unlock()
	defer func() {
		e.mu.Lock()
		delete(e.subs, live)
		e.mu.Unlock()
	}()
	for _, m := range past {
		if err := emit(m); err != nil {
			return err
		}
	}
	var end <-chan time.Time
	if !o.Until.IsZero() {
		t := time.NewTimer(time.Until(o.Until))
		defer t.Stop()
		end = t.C
	}
	for {
		select {
		case m := <-live:
			if err := emit(m); err != nil {
				return err
			}
		case <-end:
			return nil
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}
