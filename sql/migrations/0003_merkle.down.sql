-- Takes the trees and everything signed away. Checkpoints that were handed out stay valid for the chains as they were.
DROP FUNCTION checkpoint_append;
DROP FUNCTION tree_runs;
DROP TABLE audit_tree, audit_checkpoints, audit_cosignatures;
