package plan

import (
	"fmt"
	"net"
	"net/netip"
	"strings"
)

// Bridge is a network's switch, with the containers' gateway on it.
type Bridge struct {
	Name string
	Addr netip.Prefix     // the gateway's address, and the subnet's length
	MAC  net.HardwareAddr // given, so that it does not change with the ports
	MTU  int              // bytes
}

// Veth is a container's pair of links: one end a port of the bridge, the other
// in the container's namespace.
type Veth struct {
	Name    string // of the bridge's port
	Alias   string // of it: whose it is
	Bridge  string
	MTU     int    // bytes, of both ends
	Inside  string // name of the container's end
	MAC     net.HardwareAddr
	Addr    netip.Prefix // of the container's end
	Gateway netip.Addr   // default route; invalid = none
}

// MAC is docker's address for an endpoint: 02:42 and the IPv4 address, so that
// an address always has the same one and no neighbour's cache goes stale.
func MAC(a netip.Addr) net.HardwareAddr {
	b := a.As4()
	return net.HardwareAddr{0x02, 0x42, b[0], b[1], b[2], b[3]}
}

// Gateway is the address that a subnet's gateway has by default: its first.
func Gateway(subnet netip.Prefix) netip.Addr { return subnet.Masked().Addr().Next() }

// Subnet chooses the first of docker's default address pools that overlaps
// none of taken.
func Subnet(taken ...netip.Prefix) (netip.Prefix, error) {
	for _, p := range pools() {
		free := true
		for _, t := range taken {
			free = free && !p.Overlaps(t)
		}
		if free {
			return p, nil
		}
	}
	return netip.Prefix{}, fmt.Errorf("all of docker's default address pools overlap %v", taken)
}

// pools are docker's: 172.17/16 to 172.31/16, then 192.168.0/20 to 192.168.240/20.
func pools() []netip.Prefix {
	var l []netip.Prefix
	for i := byte(17); i <= 31; i++ {
		l = append(l, netip.PrefixFrom(netip.AddrFrom4([4]byte{172, i}), 16))
	}
	for i := range 16 {
		l = append(l, netip.PrefixFrom(netip.AddrFrom4([4]byte{192, 168, byte(i * 16)}), 20))
	}
	return l
}

// Table is an nftables table of family ip. It is always replaced whole.
type Table struct {
	Name   string
	Chains []Chain
}

// Chain is a base chain.
type Chain struct {
	Name     string
	Type     string // "filter" or "nat"
	Hook     string // "forward" or "postrouting"
	Priority string // "filter" or "srcnat"
	Drop     bool   // policy; false = accept
	Rules    []Rule
}

// Rule is the conditions that must all hold, and what happens then. A zero
// field is no condition.
type Rule struct {
	Established bool // of a connection that is known already, or related to one
	In, Out     string
	NotOut      string
	Source      netip.Prefix
	Verdict     string // "accept", "drop" or "masquerade"
}

// TableName is the table that holds all of our rules.
const TableName = "dhow"

// Firewall is the table for a set of bridges: what comes from a bridge may go
// out, hidden behind the machine's address, and what answers it may come in;
// nothing else is forwarded.
func Firewall(bridges ...Bridge) Table {
	forward := Chain{Name: "forward", Type: "filter", Hook: "forward", Priority: "filter", Drop: true,
		Rules: []Rule{{Established: true, Verdict: "accept"}}}
	nat := Chain{Name: "postrouting", Type: "nat", Hook: "postrouting", Priority: "srcnat"}
	for _, b := range bridges {
		forward.Rules = append(forward.Rules, Rule{In: b.Name, Verdict: "accept"})
		nat.Rules = append(nat.Rules, Rule{Source: b.Addr.Masked(), NotOut: b.Name, Verdict: "masquerade"})
	}
	return Table{Name: TableName, Chains: []Chain{forward, nat}}
}

// String returns t as nft(8) lists it.
func (t Table) String() string {
	var s strings.Builder
	fmt.Fprintf(&s, "table ip %s {\n", t.Name)
	for i, c := range t.Chains {
		if i > 0 {
			s.WriteString("\n")
		}
		policy := "accept"
		if c.Drop {
			policy = "drop"
		}
		fmt.Fprintf(&s, "\tchain %s {\n\t\ttype %s hook %s priority %s; policy %s;\n", c.Name, c.Type, c.Hook, c.Priority, policy)
		for _, r := range c.Rules {
			fmt.Fprintf(&s, "\t\t%s\n", r)
		}
		s.WriteString("\t}\n")
	}
	s.WriteString("}\n")
	return s.String()
}

// String returns r as nft(8) lists it.
func (r Rule) String() string {
	var s []string
	if r.Established {
		s = append(s, "ct state established,related")
	}
	if r.Source.IsValid() {
		s = append(s, "ip saddr "+r.Source.String())
	}
	if r.In != "" {
		s = append(s, fmt.Sprintf("iifname %q", r.In))
	}
	if r.Out != "" {
		s = append(s, fmt.Sprintf("oifname %q", r.Out))
	}
	if r.NotOut != "" {
		s = append(s, fmt.Sprintf("oifname != %q", r.NotOut))
	}
	return strings.Join(append(s, r.Verdict), " ")
}

// String returns b as the ip(8) commands that would make it.
func (b Bridge) String() string {
	return fmt.Sprintf("link add %s type bridge address %s mtu %d\naddr add %s dev %s\nlink set %s up\n", b.Name, b.MAC, b.MTU, b.Addr, b.Name, b.Name)
}

// String returns v as the ip(8) commands that would make it.
func (v Veth) String() string {
	s := fmt.Sprintf("link add %s type veth mtu %d master %s alias %q up peer %s mtu %d address %s netns CONTAINER\n", v.Name, v.MTU, v.Bridge, v.Alias, v.Inside, v.MTU, v.MAC)
	s += fmt.Sprintf("-n CONTAINER link set lo up\n-n CONTAINER link set %s addrgenmode none up\n-n CONTAINER addr add %s dev %s\n", v.Inside, v.Addr, v.Inside)
	if v.Gateway.IsValid() {
		s += fmt.Sprintf("-n CONTAINER route add default via %s dev %s\n", v.Gateway, v.Inside)
	}
	return s
}
