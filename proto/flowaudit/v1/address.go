package flowauditv1

// DefaultAddress is where a collector listens, and where agents and askers
// look for it, unless they are told otherwise.
const DefaultAddress = "127.0.0.1:4245"
