package policylog

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"strings"

	"github.com/flowaudit/flowaudit/flow"
)

// KubeNetworkPolicies reads the log that kube-network-policies (also in
// kindnet, and beside Flannel) writes with -v=2 --logging-format=json. A
// packet is one line and its verdict another; an id joins them.
type KubeNetworkPolicies struct {
	packets [maxPackets]waitingPacket
}

// maxPackets bounds the packets whose verdict has not come yet. Ids are
// numbered on, so that a later packet takes the place of the oldest.
const maxPackets = 1024

type waitingPacket struct {
	id    uint64
	valid bool
	o     flow.Observation
}

type kubeNetPolLine struct {
	TS        float64 `json:"ts"` // Unix milliseconds
	Msg       string  `json:"msg"`
	ID        *uint64 `json:"id"`
	Direction string  `json:"direction"`
	SrcPod    string  `json:"srcPod"`
	DstPod    string  `json:"dstPod"`
	Packet    struct {
		SrcIP   string `json:"SrcIP"`
		DstIP   string `json:"DstIP"`
		Proto   string `json:"Proto"`
		SrcPort uint16 `json:"SrcPort"`
		DstPort uint16 `json:"DstPort"`
	} `json:"packet"`
}

var (
	errKubeNetPolText  = errors.New("the log is text: start kube-network-policies with --logging-format=json")
	errKubeNetPolAlone = errors.New("a verdict whose packet was not in the log")
)

// Parse reads a line; see tuple.go. ok is true for the line with the verdict.
func (k *KubeNetworkPolicies) Parse(line []byte, o *flow.Observation) (bool, error) {
	if !bytes.Contains(line, []byte("acket ")) && !bytes.Contains(line, []byte(" packet")) {
		return false, nil
	}
	if len(line) == 0 || line[0] != '{' {
		if bytes.Contains(line, []byte(`"Evaluating packet"`)) {
			return false, errKubeNetPolText
		}
		return false, nil
	}
	var l kubeNetPolLine
	if err := json.Unmarshal(line, &l); err != nil {
		return false, fmt.Errorf("read JSON: %w", err)
	}
	var v flow.Verdict
	var d flow.Direction
	switch {
	case l.Msg == "Evaluating packet":
		return false, k.evaluate(&l, o.Time)
	case strings.HasPrefix(l.Msg, "Packet denied by ingress"):
		v, d = flow.VerdictDenied, flow.DirectionIngress
	case strings.HasPrefix(l.Msg, "Packet denied by egress"):
		v, d = flow.VerdictDenied, flow.DirectionEgress
	case strings.HasPrefix(l.Msg, "Packet denied"):
		v = flow.VerdictDenied
	case strings.HasPrefix(l.Msg, "Packet accepted"):
		v = flow.VerdictAllowed
	default:
		return false, nil
	}
	if l.ID == nil {
		return false, errors.New("a verdict without an id")
	}
	w := &k.packets[*l.ID%maxPackets]
	if !w.valid || w.id != *l.ID {
		return false, errKubeNetPolAlone
	}
	w.valid = false // ids begin anew when the program does
	*o = w.o
	o.Verdict = v
	told := *o.Told
	told.Direction = d
	o.Told = &told
	return true, nil
}

// evaluate keeps a packet until its verdict comes.
func (k *KubeNetworkPolicies) evaluate(l *kubeNetPolLine, now int64) error {
	if l.ID == nil {
		return errors.New("a packet without an id")
	}
	w := &k.packets[*l.ID%maxPackets]
	*w = waitingPacket{id: *l.ID, o: flow.Observation{Time: now}}
	packet(&w.o, flow.VerdictUnknown)
	if at := int64(l.TS * 1e6); at > 946_684_800e9 && at < 7_258_118_400e9 {
		w.o.Time = at
	}
	p := &l.Packet
	if err := tuple(&w.o, p.Proto, p.SrcIP, "", p.DstIP, ""); err != nil {
		return err
	}
	if w.o.Protocol.HasPorts() {
		w.o.Original.SrcPort, w.o.Original.DstPort = p.SrcPort, p.DstPort
	}
	w.o.Told = &flow.Told{Source: podOf(l.SrcPod), Destination: podOf(l.DstPod)}
	if err := sameFamily(&w.o); err != nil {
		return err
	}
	w.valid = true
	return nil
}
