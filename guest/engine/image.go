//go:build linux

package engine

import (
	"context"
	"errors"
	"io"
	"runtime"
	"slices"
	"strings"
	"time"

	"github.com/distribution/reference"
	dockerspec "github.com/moby/docker-image-spec/specs-go/v1"
	"github.com/moby/moby/api/types/events"
	"github.com/moby/moby/api/types/image"
	"github.com/moby/moby/api/types/storage"
	"github.com/opencontainers/go-digest"

	"dhow/guest/store"
	"dhow/internal/errdefs"
)

// imageConfig is the run-time half of an image's config.
func imageConfig(i store.Image) *dockerspec.DockerOCIImageConfig {
	c := i.Image.Config
	return &c
}

// parseRef reads what a user typed as an image's name; without tag and digest
// it is :latest.
func parseRef(s string) (reference.Named, error) {
	ref, err := reference.ParseNormalizedNamed(s)
	if err != nil {
		return nil, errdefs.Wrap(errdefs.Invalid, err, "%s", refSentence(err))
	}
	return reference.TagNameOnly(ref), nil
}

func refSentence(err error) string {
	if errors.Is(err, reference.ErrReferenceInvalidFormat) {
		return "invalid reference format"
	}
	return err.Error()
}

// ImagePull pulls an image.
func (e *Engine) ImagePull(ctx context.Context, o PullOptions) (PullResult, error) {
	if o.All {
		return PullResult{}, errdefs.New(errdefs.Unimplemented, "pulling all tags (pull --all-tags) is not supported yet by this version of dhow")
	}
	ref, err := parseRef(o.Ref)
	if err != nil {
		return PullResult{}, err
	}
	img, newer, err := e.o.Store.Pull(ctx, ref, store.PullOptions{
		Platform: o.Platform,
		Auth:     authOf(o.Auth),
		Progress: func(p store.Progress) { report(o.Progress, p) },
	})
	if err != nil {
		return PullResult{}, err
	}
	name := reference.FamiliarString(ref)
	e.imageEvent(name, reference.FamiliarName(ref), events.ActionPull, labelsOf(img))
	return PullResult{Digest: img.Target.Digest.String(), Newer: newer, Ref: name}, nil
}

func report(to func(Progress), p store.Progress) {
	if to != nil {
		to(Progress(p))
	}
}

func labelsOf(i store.Image) map[string]string { return i.Image.Config.Labels }

// ImageLoad reads an archive of images and returns their names (IDs where they
// have none).
func (e *Engine) ImageLoad(ctx context.Context, r io.Reader, progress func(Progress)) ([]string, error) {
	list, err := e.o.Store.Load(ctx, r, func(p store.Progress) { report(progress, p) })
	if err != nil {
		return nil, err
	}
	var names []string
	for _, i := range list {
		tags, _ := splitNames(i)
		if len(tags) == 0 {
			tags = []string{i.ID.String()}
		}
		names = append(names, tags...)
		e.imageEvent(i.ID.String(), i.ID.String(), events.ActionLoad, labelsOf(i))
	}
	return names, nil
}

// splitNames gives an image's names as a user reads them: with tags, and with
// digests.
func splitNames(i store.Image) (tags, digests []string) {
	tags, digests = []string{}, []string{}
	for _, n := range i.Names {
		ref, err := reference.ParseNormalizedNamed(n)
		if err != nil {
			continue
		}
		if _, ok := ref.(reference.Digested); ok {
			digests = append(digests, reference.FamiliarName(ref)+"@"+ref.(reference.Digested).Digest().String())
		} else {
			tags = append(tags, reference.FamiliarString(ref))
		}
	}
	return tags, digests
}

// ImageList lists images, the youngest first.
func (e *Engine) ImageList(ctx context.Context, all bool, f Filters) ([]image.Summary, error) {
	if err := f.check("dangling", "label", "label!", "before", "since", "reference", "until"); err != nil {
		return nil, err
	}
	var before, since time.Time
	for _, w := range []struct {
		key string
		at  *time.Time
	}{{"before", &before}, {"since", &since}} {
		for _, v := range f.values(w.key) {
			i, err := e.o.Store.Get(ctx, v)
			if err != nil {
				return nil, err
			}
			*w.at = i.Created
		}
	}
	until, err := f.until(time.Now())
	if err != nil {
		return nil, err
	}
	dangling, err := f.boolean("dangling", false)
	if err != nil {
		return nil, err
	}
	list, err := e.o.Store.Images(ctx)
	if err != nil {
		return nil, err
	}
	parents := map[digest.Digest]bool{}
	for _, i := range list {
		parents[i.Parent] = true
	}
	used := e.containersByImage()
	out := []image.Summary{}
	for _, i := range list {
		tags, digests := splitNames(i)
		switch {
		case !before.IsZero() && !i.Created.Before(before), !since.IsZero() && !i.Created.After(since),
			!until.IsZero() && !i.Created.Before(until),
			!f.labels("label", labelsOf(i)), len(f["label!"]) > 0 && f.labels("label!", labelsOf(i)):
			continue
		}
		if refs := f.values("reference"); len(refs) > 0 {
			if tags, digests = matchRefs(refs, tags), matchRefs(refs, digests); len(tags)+len(digests) == 0 {
				continue
			}
		}
		nameless := len(tags)+len(digests) == 0
		if nameless && parents[i.ID] && !all && !dangling {
			continue // an intermediate image of a build
		}
		if len(f["dangling"]) > 0 && dangling != (len(tags) == 0 && !parents[i.ID]) {
			continue
		}
		s := image.Summary{
			ID: i.ID.String(), ParentID: i.Parent.String(), RepoTags: tags, RepoDigests: digests,
			Created: i.Created.Unix(), Size: i.Size, SharedSize: -1, Labels: labelsOf(i), Containers: int64(used[i.ID]),
		}
		if i.Target.Digest != "" {
			t := i.Target
			s.Descriptor = &t
		}
		out = append(out, s)
	}
	slices.SortStableFunc(out, func(a, b image.Summary) int { return int(b.Created - a.Created) })
	return out, nil
}

// matchRefs returns the names that one of the patterns matches.
func matchRefs(patterns, names []string) []string {
	out := []string{}
	for _, n := range names {
		ref, err := reference.ParseNormalizedNamed(n)
		if err != nil {
			continue
		}
		if slices.ContainsFunc(patterns, func(p string) bool { ok, err := reference.FamiliarMatch(p, ref); return err == nil && ok }) {
			out = append(out, n)
		}
	}
	return out
}

func (e *Engine) containersByImage() map[digest.Digest]int {
	n := map[digest.Digest]int{}
	for _, b := range e.all() {
		n[b.copy().ImageID]++
	}
	return n
}

// ImageInspect tells all about an image.
func (e *Engine) ImageInspect(ctx context.Context, nameOrID string) (image.InspectResponse, error) {
	i, err := e.o.Store.Get(ctx, nameOrID)
	if err != nil {
		return image.InspectResponse{}, err
	}
	tags, digests := splitNames(i)
	out := image.InspectResponse{
		ID: i.ID.String(), RepoTags: tags, RepoDigests: digests, Author: i.Image.Author,
		Architecture: i.Image.Architecture, Variant: i.Image.Variant, Os: i.Image.OS, OsVersion: i.Image.OSVersion,
		Size: i.Size, Config: imageConfig(i),
		GraphDriver: &storage.DriverData{Name: driverName, Data: map[string]string{}},
		RootFS:      image.RootFS{Type: i.Image.RootFS.Type},
	}
	out.Metadata.LastTagTime = i.LastTagged
	if !i.Created.IsZero() {
		out.Created = i.Created.UTC().Format(time.RFC3339Nano)
	}
	for _, d := range i.Image.RootFS.DiffIDs {
		out.RootFS.Layers = append(out.RootFS.Layers, d.String())
	}
	if h := i.Image.History; len(h) > 0 {
		out.Comment = h[len(h)-1].Comment
	}
	if i.Target.Digest != "" {
		t := i.Target
		out.Descriptor = &t
	}
	return out, nil
}

// ImageHistory tells an image's layers, the youngest first. Layers of images
// that are not here by themselves are <missing>.
func (e *Engine) ImageHistory(ctx context.Context, nameOrID string) ([]image.HistoryResponseItem, error) {
	i, err := e.o.Store.Get(ctx, nameOrID)
	if err != nil {
		return nil, err
	}
	sizes, err := e.o.Store.LayerSizes(ctx, i)
	if err != nil {
		return nil, err
	}
	out := make([]image.HistoryResponseItem, 0, len(i.Image.History))
	layer := 0
	for _, h := range i.Image.History {
		item := image.HistoryResponseItem{ID: "<missing>", CreatedBy: h.CreatedBy, Comment: h.Comment}
		if h.Created != nil {
			item.Created = h.Created.Unix()
		}
		if !h.EmptyLayer {
			if layer < len(sizes) {
				item.Size = sizes[layer]
			}
			layer++
		}
		out = append(out, item)
	}
	slices.Reverse(out)
	if len(out) > 0 {
		out[0].ID = i.ID.String()
		out[0].Tags, _ = splitNames(i)
	}
	return out, nil
}

// ImageTag gives an image another name.
func (e *Engine) ImageTag(ctx context.Context, nameOrID, repo, tag string) error {
	i, err := e.o.Store.Get(ctx, nameOrID)
	if err != nil {
		return err
	}
	ref, err := reference.ParseNormalizedNamed(repo)
	if err != nil {
		return errdefs.Wrap(errdefs.Invalid, err, "%s", refSentence(err))
	}
	if tag != "" {
		if ref, err = reference.WithTag(reference.TrimNamed(ref), tag); err != nil {
			return errdefs.Wrap(errdefs.Invalid, err, "%s", refSentence(err))
		}
	}
	if _, ok := ref.(reference.Digested); ok {
		return errdefs.New(errdefs.Invalid, "refusing to create a tag with a digest reference")
	}
	ref = reference.TagNameOnly(ref)
	if err := e.o.Store.Tag(ctx, i.ID, ref); err != nil {
		return err
	}
	e.imageEvent(i.ID.String(), reference.FamiliarString(ref), events.ActionTag, labelsOf(i))
	return nil
}

// ImageRemove removes a name of an image, and the image with its last.
func (e *Engine) ImageRemove(ctx context.Context, nameOrID string, force, noPrune bool) ([]image.DeleteResponse, error) {
	img, err := e.o.Store.Get(ctx, nameOrID)
	if err != nil {
		return nil, err
	}
	list, err := e.o.Store.Remove(ctx, nameOrID, store.RemoveOptions{Force: force, NoPrune: noPrune, InUse: e.imageUse})
	if err != nil {
		return nil, err
	}
	out := make([]image.DeleteResponse, 0, len(list))
	for _, r := range list {
		out = append(out, image.DeleteResponse{Untagged: r.Untagged, Deleted: r.Deleted})
		if r.Untagged != "" {
			e.imageEvent(img.ID.String(), img.ID.String(), events.ActionUnTag, labelsOf(img))
		}
		if strings.HasPrefix(r.Deleted, "sha256:") && r.Deleted == img.ID.String() {
			e.imageEvent(r.Deleted, r.Deleted, events.ActionDelete, nil)
		}
	}
	return out, nil
}

// imageUse tells whether a container stands on an image; one that runs is
// named first.
func (e *Engine) imageUse(id digest.Digest) (containerID string, running, used bool) {
	e.mu.RLock()
	for b := range e.making {
		if b.rec.ImageID == id {
			containerID, used = b.id, true
		}
	}
	e.mu.RUnlock()
	for _, b := range e.all() {
		r := b.copy()
		if r.ImageID != id {
			continue
		}
		if containerID, used = r.ID, true; r.State.alive() {
			return containerID, true, true
		}
	}
	return containerID, false, used
}

// goArch is the machine's architecture in Go's words.
const goArch = runtime.GOARCH
