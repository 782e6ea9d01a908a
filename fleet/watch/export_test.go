package watch

import tea "charm.land/bubbletea/v2"

// Tick is the message by which a Model takes what has come in.
func Tick() tea.Msg { return tickMsg{} }
