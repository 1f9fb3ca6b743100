//go:build linux

package api

import (
	"bytes"
	"encoding/json"
	"io"
	"net"
	"net/http"
	"slices"
	"strings"

	"dhow/guest/engine"
	"dhow/internal/errdefs"

	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/mount"
	"github.com/moby/moby/api/types/network"
)

func (s *server) containerCreate(c *call) error {
	req, oldMAC, err := c.decodeCreate()
	if err != nil {
		return err
	}
	if err := checkCreate(req.Config, req.HostConfig); err != nil {
		return err
	}
	o := engine.CreateOptions{Name: c.query.Get("name"), Config: req.Config, HostConfig: req.HostConfig, Networking: req.NetworkingConfig}
	if c.version >= v1(41) {
		if o.Platform, err = c.platform(); err != nil {
			return err
		}
	}
	if o.HostConfig.NetworkMode == "" || o.HostConfig.NetworkMode.IsDefault() {
		o.HostConfig.NetworkMode = network.NetworkBridge
		if ep, ok := o.Networking.EndpointsConfig[network.NetworkDefault]; ok {
			o.Networking.EndpointsConfig[network.NetworkBridge] = ep
			delete(o.Networking.EndpointsConfig, network.NetworkDefault)
		}
	}
	warnings, err := adaptCreate(&o, oldMAC, c.version)
	if err != nil {
		return err
	}
	if p := o.HostConfig.PidsLimit; p != nil && *p <= 0 { // both mean "no limit"
		o.HostConfig.PidsLimit = nil
	}
	resp, err := s.Containers.ContainerCreate(c.ctx(), o)
	if err != nil {
		return err
	}
	resp.Warnings = append(resp.Warnings, warnings...)
	if resp.Warnings == nil {
		resp.Warnings = []string{}
	}
	return c.json(http.StatusCreated, resp)
}

// decodeCreate reads the request's body and fills in what may be absent.
// oldMAC is the container-wide MAC address of API versions below 1.52, which
// the types have no field for any more.
func (c *call) decodeCreate() (req container.CreateRequest, oldMAC string, err error) {
	if err := c.checkJSON(); err != nil {
		return req, "", err
	}
	body, err := io.ReadAll(http.MaxBytesReader(c.w, c.r.Body, MaxBody))
	if err != nil {
		return req, "", badJSON(err)
	}
	dec := json.NewDecoder(bytes.NewReader(body))
	if err := dec.Decode(&req); err != nil {
		return req, "", badJSON(err)
	}
	if _, err := dec.Token(); err != io.EOF {
		return req, "", errdefs.New(errdefs.Invalid, "unexpected content after JSON")
	}
	if req.Config == nil {
		return req, "", errdefs.New(errdefs.Invalid, "config cannot be empty in order to create a container")
	}
	if c.version < v1(52) && bytes.Contains(body, []byte(`"MacAddress"`)) {
		var old struct{ MacAddress string }
		if err := json.Unmarshal(body, &old); err != nil {
			return req, "", badJSON(err)
		}
		oldMAC = old.MacAddress
	}
	if req.HostConfig == nil {
		req.HostConfig = &container.HostConfig{}
	}
	if req.Config.Volumes == nil {
		req.Config.Volumes = map[string]struct{}{}
	}
	if req.HostConfig.PortBindings == nil {
		req.HostConfig.PortBindings = network.PortMap{}
	}
	if req.NetworkingConfig == nil {
		req.NetworkingConfig = &network.NetworkingConfig{}
	}
	if req.NetworkingConfig.EndpointsConfig == nil {
		req.NetworkingConfig.EndpointsConfig = map[string]*network.EndpointSettings{}
	}
	for name, ep := range req.NetworkingConfig.EndpointsConfig {
		if ep == nil { // {"bridge": null} asks for the network and nothing else
			req.NetworkingConfig.EndpointsConfig[name] = &network.EndpointSettings{}
		}
	}
	return req, oldMAC, nil
}

// checkCreate refuses settings that contradict each other, in dockerd's words.
// What depends on the machine (limits, images, names) is the engine's to check.
func checkCreate(c *container.Config, h *container.HostConfig) error {
	refuse := func(format string, args ...any) error { return errdefs.New(errdefs.Invalid, format, args...) }
	if h.NetworkMode == "container" || h.NetworkMode.IsContainer() {
		switch {
		case h.NetworkMode.ConnectedContainer() == "":
			return refuse("invalid network mode: invalid container format container:<name|id>")
		case c.Hostname != "":
			return refuse("conflicting options: hostname and the network mode")
		case len(h.Links) > 0:
			return refuse("conflicting options: container type network can't be used with links. This would result in undefined behavior")
		case len(h.DNS) > 0:
			return refuse("conflicting options: dns and the network mode")
		case len(h.ExtraHosts) > 0:
			return refuse("conflicting options: custom host-to-IP mapping and the network mode")
		case len(h.PortBindings) > 0 || h.PublishAllPorts:
			return refuse("conflicting options: port publishing and the container type network mode")
		case len(c.ExposedPorts) > 0:
			return refuse("conflicting options: port exposing and the container type network mode")
		}
	}
	switch {
	case h.UTSMode.IsHost() && c.Hostname != "":
		return refuse("conflicting options: hostname and the UTS mode")
	case h.NetworkMode.IsHost() && len(h.Links) > 0:
		return refuse("conflicting options: host type networking can't be used with links. This would result in undefined behavior")
	case !h.Isolation.IsDefault():
		return refuse("invalid isolation (%s): linux only supports 'default'", h.Isolation)
	case h.IOMaximumBandwidth != 0:
		return refuse("invalid option: QoS maximum bandwidth configuration is not supported on linux")
	case h.IOMaximumIOps != 0:
		return refuse("invalid option: QoS maximum IOPs configuration is not supported on linux")
	case h.CPURealtimePeriod != 0 || h.CPURealtimeRuntime != 0: // cgroup v2 has none
		return refuse("kernel does not support CPU real-time scheduler")
	case h.CPUShares < 0:
		return refuse("invalid CPU shares (%d): value must be a positive integer", h.CPUShares)
	}
	return nil
}

// adaptCreate gives a request of an older API version the meaning that it had
// then (moby/api/docs/CHANGELOG.md), and refuses what its version did not have.
func adaptCreate(o *engine.CreateOptions, oldMAC string, v version) (warnings []string, err error) {
	h, eps := o.HostConfig, o.Networking.EndpointsConfig
	if v < v1(25) { // there the client removes the container
		h.AutoRemove = false
	}
	if v < v1(40) && h.IpcMode.IsEmpty() {
		h.IpcMode = container.IPCModeShareable
	}
	if v < v1(42) {
		h.ConsoleSize = [2]uint{}
	}
	if v < v1(43) {
		h.Annotations = nil
	}
	if v < v1(44) {
		if o.Config.Healthcheck != nil {
			o.Config.Healthcheck.StartInterval = 0
		}
		if len(eps) > 1 {
			names := make([]string, 0, len(eps))
			for n := range eps {
				names = append(names, n)
			}
			slices.Sort(names)
			return nil, errdefs.New(errdefs.Invalid, "Container cannot be created with multiple network endpoints: %s", strings.Join(names, ", "))
		}
	}
	if v < v1(48) {
		for _, ep := range eps {
			ep.GwPriority = 0
		}
	}
	for i := range h.Mounts {
		if err := adaptMount(&h.Mounts[i], v); err != nil {
			return nil, err
		}
	}
	if h.VolumeDriver != "" && v >= v1(48) && slices.ContainsFunc(h.Mounts, func(m mount.Mount) bool {
		return m.Type == mount.TypeVolume && (m.VolumeOptions == nil || m.VolumeOptions.DriverConfig == nil || m.VolumeOptions.DriverConfig.Name == "")
	}) {
		warnings = append(warnings, "WARNING: the container-wide volume-driver configuration is ignored for volumes specified via 'mount'. Use '--mount type=volume,volume-driver=...' instead")
	}
	w, err := adaptMAC(o, oldMAC, v)
	if err != nil {
		return nil, err
	}
	if w != "" {
		warnings = append(warnings, w)
	}
	// An empty list of bindings means a random port. From 1.53 on it will mean none.
	var empty []string
	for port, b := range h.PortBindings {
		if len(b) == 0 {
			h.PortBindings[port] = []network.PortBinding{{}}
			empty = append(empty, port.String())
		}
	}
	if len(empty) > 0 && v >= v1(52) {
		slices.Sort(empty)
		warnings = append(warnings, "Following container port(s) have an empty list of port-bindings: "+strings.Join(empty, ", ")+". Starting with API 1.53, such bindings will be discarded.")
	}
	return warnings, nil
}

func adaptMount(m *mount.Mount, v version) error {
	refuse := func(format string, args ...any) error { return errdefs.New(errdefs.Invalid, format, args...) }
	b := m.BindOptions
	if v < v1(40) && b != nil {
		b.NonRecursive = false
	}
	if v < v1(42) {
		if b != nil {
			b.CreateMountpoint = false
		}
		if m.Type != mount.TypeVolume {
			m.VolumeOptions = nil
		}
		if m.Type != mount.TypeTmpfs {
			m.TmpfsOptions = nil
		}
	} else {
		switch {
		case m.VolumeOptions != nil && m.Type != mount.TypeVolume:
			return refuse("VolumeOptions must not be specified on mount type %q", m.Type)
		case b != nil && m.Type != mount.TypeBind:
			return refuse("BindOptions must not be specified on mount type %q", m.Type)
		case m.TmpfsOptions != nil && m.Type != mount.TypeTmpfs:
			return refuse("TmpfsOptions must not be specified on mount type %q", m.Type)
		}
	}
	switch {
	case v < v1(44) && m.Type == mount.TypeBind:
		if b != nil && b.ReadOnlyForceRecursive {
			return refuse("BindOptions.ReadOnlyForceRecursive needs API v1.44 or newer")
		}
		if m.ReadOnly { // read-only was not recursive then
			if b == nil {
				b = &mount.BindOptions{}
				m.BindOptions = b
			}
			b.ReadOnlyNonRecursive = true
		}
	case v < v1(45) && m.VolumeOptions != nil && m.VolumeOptions.Subpath != "":
		return refuse("VolumeOptions.Subpath needs API v1.45 or newer")
	case v < v1(48) && m.Type == mount.TypeImage:
		return refuse(`Mount type "Image" needs API v1.48 or newer`)
	}
	return nil
}

// adaptMAC moves a container-wide MAC address, which API 1.51 and below have,
// to the endpoint that it meant.
func adaptMAC(o *engine.CreateOptions, old string, v version) (warning string, err error) {
	eps, mode := o.Networking.EndpointsConfig, o.HostConfig.NetworkMode
	if v < v1(44) && old == "" {
		for _, ep := range eps { // not known then
			ep.MacAddress = nil
		}
		return "", nil
	}
	if old == "" || v >= v1(52) {
		return "", nil
	}
	mac, err := net.ParseMAC(old)
	if err != nil {
		return "", errdefs.Wrap(errdefs.Invalid, err, "invalid MAC address %q", old)
	}
	if !mode.IsBridge() && !mode.IsUserDefined() {
		if v < v1(44) {
			return "", errdefs.New(errdefs.Invalid, "conflicting options: mac-address and the network mode")
		}
		return macWarning, nil
	}
	ep := eps[mode.NetworkName()]
	switch {
	case ep != nil:
	case len(eps) == 0:
		ep = &network.EndpointSettings{}
		eps[mode.NetworkName()] = ep
	case v < v1(44): // it has one endpoint, which may be keyed by the network's id
		for _, only := range eps {
			ep = only
		}
	default:
		return "", errdefs.New(errdefs.Invalid, "unable to migrate container-wide MAC address to a specific network: HostConfig.NetworkMode must match the identity of a network in NetworkSettings.Networks")
	}
	if v < v1(44) {
		ep.MacAddress = network.HardwareAddr(mac)
		return "", nil
	}
	if len(ep.MacAddress) == 0 {
		ep.MacAddress = network.HardwareAddr(mac)
	} else if !bytes.Equal(ep.MacAddress, mac) {
		return "", errdefs.New(errdefs.Invalid, "the container-wide MAC address must match the endpoint-specific MAC address for the main network, or be left empty")
	}
	return macWarning, nil
}

const macWarning = "The container-wide MacAddress field is now deprecated. It should be specified in EndpointsConfig instead."
