package control

import "time"

// Protocol is the version of this contract. Host and guest must have the same:
// the image is versioned with the CLI and replaced as a whole.
const Protocol = 1

// vsock ports. The guest listens on the first two, the host on the others.
const (
	PortControl uint32 = 1024 // messages, host to guest
	PortDocker  uint32 = 1025 // Docker Engine HTTP API, host to guest
	PortReady   uint32 = 2048 // one connection per life of the agent, guest to host
	PortEgress  uint32 = 2049 // outbound streams, guest to host: see Egress
)

// HostCID is the host's vsock address on every hypervisor.
const HostCID = 2

// Boot is what the host tells a booting guest, as JSON in the file /boot.json of
// the initramfs.
type Boot struct {
	Protocol int       `json:"protocol"`
	Version  string    `json:"version"`  // of dhow, for messages
	Key      []byte    `json:"key"`      // 32 random bytes, new for every boot
	Machine  string    `json:"machine"`  // name of the machine; the guest's host name
	Time     time.Time `json:"time"`     // the host's clock at start
	Network  *Network  `json:"network"`  // nil: no network device
	RootCAs  []byte    `json:"root_cas"` // PEM: the host's trusted roots, added to the image's own
	Debug    bool      `json:"debug"`    // log more
}

// Network is the guest's address on the host's user-mode network.
type Network struct {
	MAC     string `json:"mac"`     // of the guest's network device
	Address string `json:"address"` // CIDR, e.g. 192.168.127.2/24
	Gateway string `json:"gateway"` // IP
	DNS     string `json:"dns"`     // IP of a forwarder to the host's resolver
	MTU     int    `json:"mtu"`     // bytes
	Host    string `json:"host"`    // IP that stands for the host's 127.0.0.1; "" where the guest may not reach it
}

// Verbs, grouped by noun. Each has a request and a response type below.
const (
	VerbHello    = "machine.hello"    // Hello → Welcome
	VerbShutdown = "machine.shutdown" // Shutdown → nothing
	VerbStats    = "machine.stats"    // nothing → Stats
	VerbSetClock = "clock.set"        // SetClock → nothing
)

// Hello opens a control connection's life.
type Hello struct {
	Protocol int    `json:"protocol"`
	Version  string `json:"version"`
}

// Welcome answers Hello.
type Welcome struct {
	Protocol int    `json:"protocol"`
	Version  string `json:"version"`
	Kernel   string `json:"kernel"` // uname -r
	BootID   string `json:"boot_id"`
	AgentPID int    `json:"agent_pid"`
	// Boot step durations in ns since the kernel's start, in order, for `dhow machine status` and benchmarks.
	Steps []Step `json:"steps,omitempty"`
}

// Step is one named point of the guest's boot.
type Step struct {
	Name string        `json:"name"`
	At   time.Duration `json:"at"` // since the kernel's start (CLOCK_BOOTTIME)
}

// Shutdown asks the guest to stop what runs and power off. The answer comes
// when containers have stopped and the data disk is synced; power-off follows.
type Shutdown struct {
	// Grace is how long containers get between SIGTERM and SIGKILL.
	Grace time.Duration `json:"grace"`
}

// SetClock sets the guest's wall clock.
type SetClock struct {
	Time time.Time `json:"time"`
}

// Stats are the guest's own figures. Memory and disk in bytes.
type Stats struct {
	MemoryTotal       int64 `json:"memory_total"`
	MemoryAvailable   int64 `json:"memory_available"`
	DiskTotal         int64 `json:"disk_total"` // of the data disk's file system
	DiskUsed          int64 `json:"disk_used"`
	RunningContainers int   `json:"running_containers"`
}

// Egress is the first message on a PortEgress connection, sent by the guest.
// The host dials and answers with EgressResult; if it has no error, the rest of
// the connection is the stream, half-close aware.
type Egress struct {
	Network string `json:"network"` // "tcp"
	Address string `json:"address"` // host:port; the host's resolver and the host's localhost
}

// EgressResult answers Egress. Error is empty on success.
type EgressResult struct {
	Error string `json:"error,omitempty"`
	Class string `json:"class,omitempty"` // an internal/errdefs class
}

// The guest's data disk and root disk are found by their virtio serial numbers.
const (
	SerialRoot = "dhow-root"
	SerialData = "dhow-data"
)
