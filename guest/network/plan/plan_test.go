package plan_test

import (
	"net/netip"
	"testing"

	"dhow/guest/network/plan"
)

func bridge() plan.Bridge {
	subnet := netip.MustParsePrefix("172.17.0.0/16")
	gw := plan.Gateway(subnet)
	return plan.Bridge{Name: "docker0", Addr: netip.PrefixFrom(gw, 16), MAC: plan.MAC(gw), MTU: 65520}
}

func TestFirewallAsText(t *testing.T) {
	const want = `table ip dhow {
	chain forward {
		type filter hook forward priority filter; policy drop;
		ct state established,related accept
		iifname "docker0" accept
	}

	chain postrouting {
		type nat hook postrouting priority srcnat; policy accept;
		ip saddr 172.17.0.0/16 oifname != "docker0" masquerade
	}
}
`
	if got := plan.Firewall(bridge()).String(); got != want {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
}

func TestLinksAsText(t *testing.T) {
	const want = `link add docker0 type bridge address 02:42:ac:11:00:01 mtu 65520
addr add 172.17.0.1/16 dev docker0
link set docker0 up
link add veth0123456 type veth mtu 65520 master docker0 alias "dhow:c" up peer eth0 mtu 65520 address 02:42:ac:11:00:02 netns CONTAINER
-n CONTAINER link set lo up
-n CONTAINER link set eth0 addrgenmode none up
-n CONTAINER addr add 172.17.0.2/16 dev eth0
-n CONTAINER route add default via 172.17.0.1 dev eth0
`
	a := netip.MustParseAddr("172.17.0.2")
	v := plan.Veth{Name: "veth0123456", Alias: "dhow:c", Bridge: "docker0", MTU: 65520, Inside: "eth0", MAC: plan.MAC(a), Addr: netip.PrefixFrom(a, 16), Gateway: bridge().Addr.Addr()}
	if got := bridge().String() + v.String(); got != want {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
}

func TestSubnetAvoidsWhatIsTaken(t *testing.T) {
	for _, c := range []struct {
		taken []string
		want  string
	}{
		{nil, "172.17.0.0/16"},
		{[]string{"192.168.127.0/24"}, "172.17.0.0/16"},
		{[]string{"172.17.5.0/24"}, "172.18.0.0/16"},
		{[]string{"172.16.0.0/12"}, "192.168.0.0/20"},
		{[]string{"172.16.0.0/12", "192.168.1.0/24"}, "192.168.16.0/20"},
	} {
		var taken []netip.Prefix
		for _, s := range c.taken {
			taken = append(taken, netip.MustParsePrefix(s))
		}
		if got, err := plan.Subnet(taken...); err != nil || got.String() != c.want {
			t.Errorf("%v: %v, %v; want %s", c.taken, got, err, c.want)
		}
	}
	if _, err := plan.Subnet(netip.MustParsePrefix("0.0.0.0/0")); err == nil {
		t.Error("no error where everything is taken")
	}
}
