package other

import (
	"strings"
	"testing"
)

func TestCalicoSelector(t *testing.T) {
	db := pods()["db"] // role=db, app.kubernetes.io/name=postgres-15, in shop
	for text, want := range map[string]bool{
		"":                                       true,
		"  ":                                     true,
		"all()":                                  true,
		"all( )":                                 true,
		"global()":                               false,
		"role == 'db'":                           true,
		`role=="db"`:                             true,
		"role == 'web'":                          false,
		"none == 'web'":                          false,
		"role != 'web'":                          true,
		"none != 'web'":                          true,
		"role in {'web', \"db\"}":                true,
		"role in { }":                            false,
		"role not in {'web'}":                    true,
		"role notin{'db'}":                       false,
		"none not in {'web'}":                    true,
		"has(role)":                              true,
		"has( none )":                            false,
		"!has(none)":                             true,
		"! ! has(role)":                          true,
		"app.kubernetes.io/name contains 'gres'": true,
		"app.kubernetes.io/name starts with 'post'":                         true,
		"app.kubernetes.io/name startswith 'gres'":                          false,
		"app.kubernetes.io/name ends with '-15'":                            true,
		"none ends with ''":                                                 false,
		"role == 'web' || role == 'db' && has(none)":                        false,
		"role == 'db' || role == 'web' && has(none)":                        true,
		"(role == 'db' || role == 'web') && has(none)":                      false,
		"!(role == 'web') && (has(role))":                                   true,
		"projectcalico.org/namespace == 'shop'":                             true,
		"projectcalico.org/orchestrator == 'k8s'":                           true,
		"pcns.team == 'shop' && pcns.kubernetes.io/metadata.name == 'shop'": true,
		"pcns.team == 'ops'":                                                false,
		"role == 'a\\'":                                                     false, // a backslash is one
	} {
		e, err := parseCalico(text, calicoPod)
		if err != nil {
			t.Errorf("%q: %v", text, err)
			continue
		}
		if got := e(db); got != is(want) {
			t.Errorf("%q is %d, want %d", text, got, is(want))
		}
	}
	for _, text := range []string{"projectcalico.org/serviceaccount == 'x'", "pcsa.tier == 'x'", "!has(pcsa.tier)", "has(role) && pcsa.tier != 'x'"} {
		e, err := parseCalico(text, calicoPod)
		if err != nil || e(db) != maybe {
			t.Errorf("%q: %v, and it is not in doubt", text, err)
		}
	}
	for _, text := range []string{
		"role", "role ==", "role == db", "role == 'db", "role = 'db'", "role in", "role in {'a'", "role in {'a' 'b'}", "role in {a}", "has()", "has(role", "any()", "all(x)",
		"(role == 'db'", "role == 'db')", "role == 'db' &&", "|| has(role)", "role == 'db' role == 'db'", "!", "role ~ 'x'", "rôle == 'db'",
		strings.Repeat("(", 1000) + "all()" + strings.Repeat(")", 1000),
	} {
		if _, err := parseCalico(text, calicoPod); err == nil {
			t.Errorf("%.40q is taken for a selector", text)
		}
	}
}

// FuzzCalicoSelector: no text makes the parser panic, and the negation of what
// it takes for a selector is one that says the opposite.
func FuzzCalicoSelector(f *testing.F) {
	for _, text := range []string{"role == 'db' && !(has(x) || y not in {'a', \"b\"})", "a starts with 'x'", "all()", "((", "a in {'", "!!!has(a)"} {
		f.Add(text)
	}
	f.Fuzz(func(t *testing.T, text string) {
		e, err := parseCalico(text, calicoPod)
		if err != nil || strings.TrimLeft(text, " \t\r\n") == "" {
			return
		}
		negated, err := parseCalico("!("+text+")", calicoPod)
		if err != nil {
			if strings.Count(text, "(") < maxNesting {
				t.Fatalf("%q is a selector, and not in parentheses: %v", text, err)
			}
			return
		}
		for name, p := range pods() {
			if e(p) != negated(p).not() {
				t.Errorf("%q is %d of %s, and its negation %d", text, e(p), name, negated(p))
			}
		}
	})
}

// FuzzRead: no object makes it panic, and a policy selects within its namespace.
func FuzzRead(f *testing.F) {
	f.Add(uint8(0), `{"spec": {"selector": "role == 'db'"}}`)
	f.Add(uint8(1), `{"specs": [{"endpointSelector": {"matchLabels": {"k8s:role": "db"}}}, null]}`)
	f.Add(uint8(2), `{"spec": {"subject": {"pods": {"podSelector": {"matchExpressions": [{"key": "a", "operator": "In", "values": ["b"]}]}}}}}`)
	f.Add(uint8(3), `{"spec": {"appliedTo": [{"podSelector": {}}], "ingress": [{"appliedTo": [{}]}]}}`)
	f.Fuzz(func(t *testing.T, group uint8, object string) {
		groups := []string{calico, cilium, network, antrea}
		p := Read(groups[int(group)%len(groups)], "P", "shop", "p", []byte(object))
		for name, pod := range pods() {
			if p.Selects(pod) && pod.Namespace != "shop" {
				t.Errorf("a policy of shop selects %s", name)
			}
		}
		if p.Doubt != "" && !p.Selects(pods()["db"]) {
			t.Errorf("in doubt (%s), and it does not select", p.Doubt)
		}
	})
}
