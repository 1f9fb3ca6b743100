//go:build linux

package engine

import (
	"slices"
	"testing"
	"time"

	dockerspec "github.com/moby/docker-image-spec/specs-go/v1"
	"github.com/moby/moby/api/types/container"
)

func TestWhatIsKeptButNotServedIsWarnedOf(t *testing.T) {
	const health = "Healthchecks are kept as data, and not run yet by this version of dhow: the container will never be healthy or unhealthy."
	const tag = "The log option tag is kept as data, and has no effect yet in this version of dhow."
	w := newWorld(t)
	w.store.image.Image.Config.Healthcheck = &dockerspec.HealthcheckConfig{Test: []string{"CMD", "true"}} // the image's own: nobody asked for it
	for name, c := range map[string]struct {
		health *container.HealthConfig
		log    container.LogConfig
		want   []string
	}{
		"nothing":     {want: []string{}},
		"a command":   {health: &container.HealthConfig{Test: []string{"CMD-SHELL", "true"}}, want: []string{health}},
		"an interval": {health: &container.HealthConfig{Interval: time.Second}, want: []string{health}},
		"none":        {health: &container.HealthConfig{Test: []string{"NONE"}}, want: []string{}},
		"no value":    {health: &container.HealthConfig{}, want: []string{}},
		"other logs":  {log: container.LogConfig{Type: "json-file", Config: map[string]string{"max-size": "1m"}}, want: []string{}},
		"a tag":       {log: container.LogConfig{Type: "json-file", Config: map[string]string{"tag": "{{.Name}}"}}, want: []string{tag}},
		"both":        {health: &container.HealthConfig{Retries: 3}, log: container.LogConfig{Config: map[string]string{"tag": "x"}}, want: []string{health, tag}},
	} {
		r, err := w.ContainerCreate(t.Context(), CreateOptions{
			Config: &container.Config{Image: "box", Healthcheck: c.health}, HostConfig: &container.HostConfig{LogConfig: c.log},
		})
		if err != nil || !slices.Equal(r.Warnings, c.want) || r.Warnings == nil {
			t.Errorf("%s: %q, %v", name, r.Warnings, err)
		}
	}
}
