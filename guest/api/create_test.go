//go:build linux

package api_test

import (
	"net/netip"
	"reflect"
	"strings"
	"testing"

	"dhow/guest/engine"

	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/mount"
	"github.com/moby/moby/api/types/network"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// created sends a create by an API version and returns what reached the engine
// and the warnings.
func (r *rig) created(version, query, body string) (engine.CreateOptions, []any) {
	r.t.Helper()
	resp, got := r.do("POST", "/v"+version+"/containers/create?"+query, body)
	if resp.StatusCode != 201 {
		r.t.Fatalf("create by %s: %s: %s", version, resp.Status, got)
	}
	a := decode(r.t, got).(map[string]any)
	if id, _ := a["Id"].(string); len(id) != 64 {
		r.t.Errorf("%s", got)
	}
	return r.e.Last("ContainerCreate").(engine.CreateOptions), a["Warnings"].([]any)
}

func TestCreateFillsInWhatIsAbsent(t *testing.T) {
	r := newRig(t)
	o, warnings := r.created("1.52", "name=n&platform=linux/arm64/v8", `{"Image":"hello-world","Cmd":["echo"]}`)
	want := engine.CreateOptions{
		Name: "n", Platform: &ocispec.Platform{OS: "linux", Architecture: "arm64"},
		Config:     &container.Config{Image: "hello-world", Cmd: []string{"echo"}, Volumes: map[string]struct{}{}},
		HostConfig: &container.HostConfig{NetworkMode: "bridge", PortBindings: network.PortMap{}},
		Networking: &network.NetworkingConfig{EndpointsConfig: map[string]*network.EndpointSettings{}},
	}
	if !reflect.DeepEqual(o, want) || len(warnings) != 0 {
		t.Errorf("%+v, %v", o, warnings)
	}
	r.refused("POST", "/containers/create?name=n", `{"Image":"hello-world"}`, 409,
		`Conflict. The container name "/n" is already in use by container "`+r.get("/containers/n/json").(map[string]any)["Id"].(string)+`". You have to remove (or rename) that container to be able to reuse that name.`)
	r.refused("POST", "/containers/create", `{"Image":"nosuch"}`, 404, "No such image: nosuch:latest")
	o, _ = r.created("1.52", "", `{"Image":"hello-world","Cmd":["echo"],"HostConfig":{"NetworkMode":"default","PidsLimit":-1},"NetworkingConfig":{"EndpointsConfig":{"default":{"Aliases":["x"]},"other":null}}}`)
	if o.HostConfig.NetworkMode != "bridge" || o.HostConfig.PidsLimit != nil || len(o.Networking.EndpointsConfig) != 2 ||
		o.Networking.EndpointsConfig["bridge"].Aliases[0] != "x" || o.Networking.EndpointsConfig["other"] == nil {
		t.Errorf("%+v %+v", o.HostConfig, o.Networking)
	}
}

func TestCreateRefusesContradictions(t *testing.T) {
	r := newRig(t)
	for body, sentence := range map[string]string{
		`"HostConfig":{"NetworkMode":"container:"}`:                                   "invalid network mode: invalid container format container:<name|id>",
		`"Hostname":"h","HostConfig":{"NetworkMode":"container:a"}`:                   "conflicting options: hostname and the network mode",
		`"HostConfig":{"NetworkMode":"container:a","Links":["a:b"]}`:                  "conflicting options: container type network can't be used with links. This would result in undefined behavior",
		`"HostConfig":{"NetworkMode":"container:a","Dns":["1.1.1.1"]}`:                "conflicting options: dns and the network mode",
		`"HostConfig":{"NetworkMode":"container:a","ExtraHosts":["a:1.1.1.1"]}`:       "conflicting options: custom host-to-IP mapping and the network mode",
		`"HostConfig":{"NetworkMode":"container:a","PublishAllPorts":true}`:           "conflicting options: port publishing and the container type network mode",
		`"ExposedPorts":{"80/tcp":{}},"HostConfig":{"NetworkMode":"container:a"}`:     "conflicting options: port exposing and the container type network mode",
		`"Hostname":"h","HostConfig":{"UTSMode":"host"}`:                              "conflicting options: hostname and the UTS mode",
		`"HostConfig":{"NetworkMode":"host","Links":["a:b"]}`:                         "conflicting options: host type networking can't be used with links. This would result in undefined behavior",
		`"HostConfig":{"Isolation":"hyperv"}`:                                         "invalid isolation (hyperv): linux only supports 'default'",
		`"HostConfig":{"IOMaximumBandwidth":1}`:                                       "invalid option: QoS maximum bandwidth configuration is not supported on linux",
		`"HostConfig":{"IOMaximumIOps":1}`:                                            "invalid option: QoS maximum IOPs configuration is not supported on linux",
		`"HostConfig":{"CpuRealtimePeriod":1}`:                                        "kernel does not support CPU real-time scheduler",
		`"HostConfig":{"CpuShares":-1}`:                                               "invalid CPU shares (-1): value must be a positive integer",
		`"HostConfig":{"Mounts":[{"Type":"bind","Target":"/a","VolumeOptions":{}}]}`:  `VolumeOptions must not be specified on mount type "bind"`,
		`"HostConfig":{"Mounts":[{"Type":"tmpfs","Target":"/a","BindOptions":{}}]}`:   `BindOptions must not be specified on mount type "tmpfs"`,
		`"HostConfig":{"Mounts":[{"Type":"volume","Target":"/a","TmpfsOptions":{}}]}`: `TmpfsOptions must not be specified on mount type "volume"`,
	} {
		r.refused("POST", "/containers/create", `{"Image":"hello-world",`+body+`}`, 400, sentence)
	}
	r.refused("POST", "/v1.43/containers/create", `{"Image":"hello-world","NetworkingConfig":{"EndpointsConfig":{"b":{},"a":{}}}}`, 400, "Container cannot be created with multiple network endpoints: a, b")
	r.refused("POST", "/v1.43/containers/create", `{"Image":"hello-world","HostConfig":{"Mounts":[{"Type":"bind","Target":"/a","BindOptions":{"ReadOnlyForceRecursive":true}}]}}`, 400, "BindOptions.ReadOnlyForceRecursive needs API v1.44 or newer")
	r.refused("POST", "/v1.44/containers/create", `{"Image":"hello-world","HostConfig":{"Mounts":[{"Type":"volume","Target":"/a","VolumeOptions":{"Subpath":"x"}}]}}`, 400, "VolumeOptions.Subpath needs API v1.45 or newer")
	r.refused("POST", "/v1.47/containers/create", `{"Image":"hello-world","HostConfig":{"Mounts":[{"Type":"image","Target":"/a"}]}}`, 400, `Mount type "Image" needs API v1.48 or newer`)
	if resp, body := r.do("POST", "/containers/create?platform=a/b/c/d", `{"Image":"hello-world"}`); resp.StatusCode != 400 {
		t.Errorf("%s: %s", resp.Status, body)
	}
}

func TestCreateByOlderVersions(t *testing.T) {
	r := newRig(t)
	const body = `{"Image":"hello-world","Cmd":["echo"],"Healthcheck":{"StartInterval":1000000000},"HostConfig":{"AutoRemove":true,"ConsoleSize":[1,2],"Annotations":{"a":"b"},
		"Mounts":[{"Type":"bind","Source":"/s","Target":"/t","ReadOnly":true,"BindOptions":{"NonRecursive":true,"CreateMountpoint":true},"TmpfsOptions":{}}]},
		"NetworkingConfig":{"EndpointsConfig":{"n":{"GwPriority":7,"MacAddress":"02:00:00:00:00:09"}}}}`
	o, _ := r.created("1.24", "platform=linux/arm64", body)
	h, m, ep := o.HostConfig, o.HostConfig.Mounts[0], o.Networking.EndpointsConfig["n"]
	if o.Platform != nil || h.AutoRemove || h.ConsoleSize != [2]uint{} || h.Annotations != nil || h.IpcMode != "shareable" ||
		o.Config.Healthcheck.StartInterval != 0 || m.TmpfsOptions != nil || ep.GwPriority != 0 || ep.MacAddress != nil ||
		!reflect.DeepEqual(m.BindOptions, &mount.BindOptions{ReadOnlyNonRecursive: true}) {
		t.Errorf("by 1.24: %+v %+v %+v %+v", h, m.BindOptions, ep, o.Config.Healthcheck)
	}
	o, _ = r.created("1.52", "", strings.Replace(body, `,"TmpfsOptions":{}`, "", 1))
	h, m, ep = o.HostConfig, o.HostConfig.Mounts[0], o.Networking.EndpointsConfig["n"]
	if !h.AutoRemove || h.ConsoleSize != [2]uint{1, 2} || h.Annotations["a"] != "b" || h.IpcMode != "" || o.Config.Healthcheck.StartInterval != 1e9 ||
		ep.GwPriority != 7 || ep.MacAddress.String() != "02:00:00:00:00:09" || !reflect.DeepEqual(m.BindOptions, &mount.BindOptions{NonRecursive: true, CreateMountpoint: true}) {
		t.Errorf("by 1.52: %+v %+v %+v", h, m.BindOptions, ep)
	}
}

func TestContainerWideMACAddress(t *testing.T) {
	const warning = "The container-wide MacAddress field is now deprecated. It should be specified in EndpointsConfig instead."
	r := newRig(t)
	for _, c := range []struct {
		name, version, rest string
		mac                 map[string]string // by endpoint
		warns               bool
	}{
		{"to a new endpoint", "1.41", ``, map[string]string{"bridge": "02:00:00:00:00:01"}, false},
		{"to the only one, whatever its key", "1.43", `,"HostConfig":{"NetworkMode":"n"},"NetworkingConfig":{"EndpointsConfig":{"0123":{}}}`, map[string]string{"0123": "02:00:00:00:00:01"}, false},
		{"with a warning", "1.44", ``, map[string]string{"bridge": "02:00:00:00:00:01"}, true},
		{"beside the same", "1.51", `,"NetworkingConfig":{"EndpointsConfig":{"bridge":{"MacAddress":"02:00:00:00:00:01"}}}`, map[string]string{"bridge": "02:00:00:00:00:01"}, true},
		{"not any more", "1.52", ``, map[string]string{}, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			o, warnings := r.created(c.version, "", `{"Image":"hello-world","Cmd":["echo"],"MacAddress":"02:00:00:00:00:01"`+c.rest+`}`)
			got := map[string]string{}
			for k, ep := range o.Networking.EndpointsConfig {
				got[k] = ep.MacAddress.String()
			}
			if !reflect.DeepEqual(got, c.mac) || c.warns != (len(warnings) == 1 && warnings[0] == warning) {
				t.Errorf("%v, %v", got, warnings)
			}
		})
	}
	r.refused("POST", "/v1.41/containers/create", `{"Image":"hello-world","MacAddress":"02:00:00:00:00:01","HostConfig":{"NetworkMode":"host"}}`, 400, "conflicting options: mac-address and the network mode")
	r.refused("POST", "/v1.41/containers/create", `{"Image":"hello-world","MacAddress":"x"}`, 400, `invalid MAC address "x"`)
	r.refused("POST", "/v1.44/containers/create", `{"Image":"hello-world","MacAddress":"02:00:00:00:00:01","NetworkingConfig":{"EndpointsConfig":{"bridge":{"MacAddress":"02:00:00:00:00:02"}}}}`, 400,
		"the container-wide MAC address must match the endpoint-specific MAC address for the main network, or be left empty")
	r.refused("POST", "/v1.44/containers/create", `{"Image":"hello-world","MacAddress":"02:00:00:00:00:01","HostConfig":{"NetworkMode":"n"},"NetworkingConfig":{"EndpointsConfig":{"m":{}}}}`, 400,
		"unable to migrate container-wide MAC address to a specific network: HostConfig.NetworkMode must match the identity of a network in NetworkSettings.Networks")
}

func TestWarningsOfCreate(t *testing.T) {
	r := newRig(t)
	o, w := r.created("1.52", "", `{"Image":"hello-world","Cmd":["echo"],"HostConfig":{"PortBindings":{"81/udp":[],"80/tcp":null,"82/tcp":[{"HostIp":"","HostPort":"8"}]}}}`)
	if len(w) != 1 || w[0] != "Following container port(s) have an empty list of port-bindings: 80/tcp, 81/udp. Starting with API 1.53, such bindings will be discarded." {
		t.Errorf("%q", w)
	}
	if p := o.HostConfig.PortBindings; len(p) != 3 || len(p[network.MustParsePort("80")]) != 1 || p[network.MustParsePort("82")][0] != (network.PortBinding{HostIP: netip.Addr{}, HostPort: "8"}) {
		t.Errorf("%v", p)
	}
	if _, w := r.created("1.51", "", `{"Image":"hello-world","Cmd":["echo"],"HostConfig":{"PortBindings":{"80/tcp":[]}}}`); len(w) != 0 {
		t.Errorf("%q", w)
	}
	const volumes = `{"Image":"hello-world","Cmd":["echo"],"HostConfig":{"VolumeDriver":"d","Mounts":[{"Type":"volume","Source":"v","Target":"/v"}]}}`
	if _, w := r.created("1.48", "", volumes); len(w) != 1 || !strings.HasPrefix(w[0].(string), "WARNING: the container-wide volume-driver") {
		t.Errorf("%q", w)
	}
	if _, w := r.created("1.47", "", volumes); len(w) != 0 {
		t.Errorf("%q", w)
	}
}
