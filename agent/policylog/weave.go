package policylog

import (
	"errors"
	"strings"

	"github.com/flowaudit/flowaudit/flow"
)

// Weave reads the log of Weave Net's weave-npc, which tells every new TCP and
// UDP connection that it blocks:
//
//	WARN: 2021/05/12 02:47:10.232988 TCP connection from A:p to B:p blocked by Weave NPC.
type Weave struct{}

var errWeave = errors.New("not of the form: TCP connection from A:p to B:p blocked by Weave NPC")

// Parse reads a line; see tuple.go.
func (Weave) Parse(line []byte, o *flow.Observation) (bool, error) {
	before, rest, ok := strings.Cut(string(line), " connection from ")
	if !ok || !strings.Contains(rest, "blocked by Weave NPC") {
		return false, nil
	}
	at := strings.LastIndexAny(before, ` "`) // logrus quotes the message
	protocol := before[at+1:]
	from, rest, ok := strings.Cut(rest, " to ")
	to, _, ended := strings.Cut(rest, " blocked by Weave NPC")
	if !ok || !ended {
		return false, errWeave
	}
	src, srcPort, ok := cutPort(from)
	dst, dstPort, also := cutPort(to)
	if !ok || !also {
		return false, errWeave
	}
	packet(o, flow.VerdictDenied)
	// Its clock is the container's: UTC.
	if _, when, ok := strings.Cut(before, "WARN: "); ok && len(when) >= len(weaveTime) {
		stamp(o, weaveTime, when[:len(weaveTime)])
	}
	if err := tuple(o, protocol, src, srcPort, dst, dstPort); err != nil {
		return false, err
	}
	return true, sameFamily(o)
}

const weaveTime = "2006/01/02 15:04:05.000000"

func cutPort(s string) (addr, port string, ok bool) {
	i := strings.LastIndexByte(s, ':')
	if i < 0 {
		return "", "", false
	}
	return strings.Trim(s[:i], "[]"), s[i+1:], true
}
