package policy

// group is the pods that one peer selects.
type group struct {
	namespace  string    // the policy's own, which counts where namespaces is nil
	namespaces *selector // nil: the policy's own namespace
	pods       *selector
}

// match reports whether the pods of a class are in the group.
func (g *group) match(c *Class) answer {
	in := g.matchNamespace(c)
	if in.is == no {
		return in
	}
	return in.and(g.pods.match(c.labels))
}

func (g *group) matchNamespace(c *Class) answer {
	if g.namespaces == nil {
		return answer{is: isTrue(g.namespace == c.namespace)}
	}
	return g.namespaces.matchNamespace(c)
}

// scopeKey is equal for groups that choose namespaces alike.
func (g *group) scopeKey(b []byte) []byte {
	if g.namespaces == nil {
		return appendString(append(b, 'n'), g.namespace)
	}
	return g.namespaces.appendKey(append(b, 's'))
}

// scope is all groups that choose namespaces alike, so that the namespace of a
// class is matched once for all of them. Groups are named by their numbers.
type scope struct {
	any    *group // one of them
	groups []uint32
}

// members are the groups that a class is in. The zero value is in none.
type members struct {
	yes   []uint64 // one bit a group
	maybe []doubtfulMember
}

type doubtfulMember struct {
	group uint32
	why   Reason
}

// of reports whether the class is in a group.
func (m *members) of(g uint32) answer {
	if word := int(g >> 6); word < len(m.yes) && m.yes[word]&(1<<(g&63)) != 0 {
		return answer{is: yes}
	}
	for _, d := range m.maybe {
		if d.group == g {
			return doubt(d.why)
		}
	}
	return answer{}
}

// join adds a group. The bits must be the caller's own.
func (m *members) join(g uint32, a answer) {
	switch a.is {
	case yes:
		for int(g>>6) >= len(m.yes) {
			m.yes = append(m.yes, 0)
		}
		m.yes[g>>6] |= 1 << (g & 63)
	case maybe:
		m.maybe = append(m.maybe, doubtfulMember{g, a.why})
	}
}
