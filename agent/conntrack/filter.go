package conntrack

import (
	"encoding/binary"
	"slices"

	"golang.org/x/net/bpf"
	"golang.org/x/sys/unix"

	"github.com/flowaudit/flowaudit/flow"
)

// Offsets in an event: struct nlmsghdr, struct nfgenmsg, attributes.
const (
	offType       = 4
	offFlags      = 6
	offAttributes = 20
	attrHeader    = 4
)

// filter drops in the kernel what nobody needs:
//
//   - connections within the loopback: source and real destination are both
//     127.0.0.0/8, or the source is ::1. No policy rules them. One that is
//     translated to another host's address, as a node port on localhost is,
//     leaves the host and passes.
//   - updates that do not tell the first reply, which is all that an update is
//     read for. Without IPS_SEEN_REPLY there was none (a mark or label
//     changed). With IPS_ASSURED it was told before: the kernel sets that bit
//     at a later packet than the first reply, for every protocol.
//   - of the rest, updates of a TCP connection that is established or closing:
//     the reply came with SYN_RECV, and the end comes with a DESTROY. A
//     connection that is picked up in the middle has no change of state with
//     its first reply, so that update passes.
//
// This is four of the seven events of a TCP connection. What a lost or dropped
// update would have said, the next dump and the DESTROY say too.
//
// Everything else passes, also what the program does not understand. The
// extension loads walk attributes (SKF_AD_NLATTR and SKF_AD_NLATTR_NEST,
// linux/filter.h): A is where to begin, X the type; A becomes where it is, or 0.
func filter() ([]bpf.RawInstruction, error) {
	const pass, drop = 0x40000, 0
	return assemble(slices.Concat(loopbackSteps(), updateSteps(), []step{
		{label: "pass", ins: bpf.RetConstant{Val: pass}},
		{label: "drop", ins: bpf.RetConstant{Val: drop}},
	}))
}

// loopbackSteps go on at update with what is not within the loopback. The
// kernel writes the source first into CTA_TUPLE_IP.
func loopbackSteps() []step {
	const source = 2 * attrHeader // from where CTA_TUPLE_IP begins
	load := func(off, size int) bpf.Instruction { return bpf.LoadIndirect{Off: uint32(off), Size: size} }
	equal := func(v uint32) bpf.Instruction { return bpf.JumpIf{Cond: bpf.JumpEqual, Val: v} }
	return slices.Concat(
		find("update", ctaTupleOrig, ctaTupleIP),
		[]step{
			{ins: load(source, 1)},
			{ins: equal(127), ifTrue: "v4?"},
			{ins: equal(0), ifTrue: "v6?", ifFalse: "update"},

			{label: "v4?", ins: load(attrHeader, 2)}, // length of the address attribute
			{ins: equal(hostShort(attrHeader + 4)), ifFalse: "update"},
		},
		find("update", ctaTupleReply, ctaTupleIP),
		[]step{
			{ins: load(source, 1)},
			{ins: equal(127), ifTrue: "drop", ifFalse: "update"},

			{label: "v6?", ins: load(source, 4)},
			{ins: equal(0), ifFalse: "update"},
			{ins: load(source+4, 4)},
			{ins: equal(0), ifFalse: "update"},
			{ins: load(source+8, 4)},
			{ins: equal(0), ifFalse: "update"},
			{ins: load(source+12, 4)},
			{ins: equal(1), ifTrue: "drop", ifFalse: "update"},
		})
}

// updateSteps begin at update. An update is an IPCTNL_MSG_CT_NEW without
// NLM_F_CREATE.
func updateSteps() []step {
	return slices.Concat(
		[]step{
			{label: "update", ins: bpf.LoadAbsolute{Off: offType, Size: 2}},
			{ins: bpf.JumpIf{Cond: bpf.JumpEqual, Val: hostShort(messageNew)}, ifFalse: "pass"},
			{ins: bpf.LoadAbsolute{Off: offFlags, Size: 2}},
			{ins: bpf.JumpIf{Cond: bpf.JumpBitsSet, Val: hostShort(unix.NLM_F_CREATE)}, ifTrue: "pass"},
		},
		find("pass", ctaStatus),
		[]step{
			{ins: bpf.LoadIndirect{Off: attrHeader, Size: 4}},
			{ins: bpf.JumpIf{Cond: bpf.JumpBitsSet, Val: flow.StatusSeenReply}, ifFalse: "drop"},
			{ins: bpf.JumpIf{Cond: bpf.JumpBitsSet, Val: flow.StatusAssured}, ifTrue: "drop"},
		},
		find("pass", ctaProtoinfo, ctaProtoinfoTCP, ctaProtoinfoTCPState),
		[]step{
			{ins: bpf.LoadIndirect{Off: attrHeader, Size: 1}},
			{ins: bpf.JumpIf{Cond: bpf.JumpLessThan, Val: flow.TCPStateEstablished}, ifTrue: "pass"},
			{ins: bpf.JumpIf{Cond: bpf.JumpGreaterThan, Val: flow.TCPStateClose}, ifTrue: "pass", ifFalse: "drop"},
		})
}

// find leaves in X where the attribute of a path begins, or goes to absent.
func find(absent string, path ...uint32) []step {
	steps := []step{{ins: bpf.LoadConstant{Dst: bpf.RegA, Val: offAttributes}}}
	extension := bpf.ExtNetlinkAttr
	for _, typ := range path {
		steps = append(steps,
			step{ins: bpf.LoadConstant{Dst: bpf.RegX, Val: typ}},
			step{ins: bpf.LoadExtension{Num: extension}},
			step{ins: bpf.JumpIf{Cond: bpf.JumpEqual, Val: 0}, ifTrue: absent})
		extension = bpf.ExtNetlinkAttrNested
	}
	return append(steps, step{ins: bpf.TAX{}})
}

// step is an instruction that others can jump to by its label, and that jumps
// to labels; an empty one is the next step.
type step struct {
	label, ifTrue, ifFalse string
	ins                    bpf.Instruction
}

// assemble turns labels into distances.
func assemble(steps []step) ([]bpf.RawInstruction, error) {
	at := make(map[string]int)
	for i, s := range steps {
		if s.label != "" {
			at[s.label] = i
		}
	}
	program := make([]bpf.Instruction, len(steps))
	for i, s := range steps {
		program[i] = s.ins
		jump, ok := s.ins.(bpf.JumpIf)
		if !ok {
			continue
		}
		if s.ifTrue != "" {
			jump.SkipTrue = uint8(at[s.ifTrue] - i - 1)
		}
		if s.ifFalse != "" {
			jump.SkipFalse = uint8(at[s.ifFalse] - i - 1)
		}
		program[i] = jump
	}
	return bpf.Assemble(program)
}

// hostShort is what a load, which reads network order, makes of a value in
// host order.
func hostShort(v uint16) uint32 {
	return uint32(binary.BigEndian.Uint16(binary.NativeEndian.AppendUint16(nil, v)))
}
