package cli

import (
	"reflect"

	"github.com/docker/cli/cli/command"
	"github.com/docker/cli/cli/context/docker"
	"github.com/docker/cli/cli/context/store"
)

// ContextName is the docker context that the CLI makes, so that `docker
// --context dhow` reaches the engine.
const ContextName = "dhow"

// ensureContext creates the docker context, or corrects it. A context of this
// name that was made by the user for another host is overwritten: the name is
// dhow's.
func ensureContext(s store.Store, socket string) error {
	want := store.Metadata{
		Name:      ContextName,
		Metadata:  command.DockerContext{Description: "dhow"},
		Endpoints: map[string]any{docker.DockerEndpoint: docker.EndpointMeta{Host: socket}},
	}
	if have, err := s.GetMetadata(ContextName); err == nil && reflect.DeepEqual(have, want) {
		return nil
	}
	return s.CreateOrUpdate(want)
}
