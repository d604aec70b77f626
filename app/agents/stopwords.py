"""The commonest function words of eight languages in Latin script.

They only sharpen the choice of key phrases: in other languages `text.Text` knows short words that recur by
counting. Words of one or two letters are not listed, since they are always taken for function words.
"""

from __future__ import annotations

STOPWORDS = frozenset(
    """
    about after all also although among and another any are around because been before being between both
    but can could did does doing down during each either else even ever every for from further had has
    have having her here hers him his how however into its itself just like made make many may might more
    most much must nor not now off once one only other our out over own said same shall she should since
    some such than that the their them then there these they this those though through thus too two under
    until upon use used using very was were what when where whether which while who whom whose why will
    with within without would yet you your

    aber alle allem allen aller alles als also auch auf aus bei beim bis damit dann das dass dem den denn
    der des deren dessen die dies diese diesem diesen dieser dieses doch dort durch ein eine einem einen
    einer eines etwa fast für gegen hat hatte haben hier ihr ihre ihrem ihren ihrer ist jede jedem jeden
    jeder jedes kann kein keine können man mehr mit muss nach nicht noch nur oder ohne sehr sein seine
    seinem seinen seiner seit sich sie sind sowie über und uns unter viele vom von vor war waren was weil
    wenn werden wer wie wird wurde wurden zum zur zwischen

    ainsi alors après aussi autre autres aux avant avec avoir car ces cet cette ceux chaque comme dans
    depuis des deux donc dont elle elles entre est été être font fait ils les leur leurs lors mais même
    nous notre ont par parce pas pendant peu peut peuvent plus pour quand que quel quelle qui sans sera
    ses soit son sont sous sur tous tout toute toutes très une vers vous

    algo ante antes aquel aquella así aun aunque cada como con contra cual cuando del desde donde dos ella
    ellas ellos era eran esa ese eso esta está están estas este esto estos fue fueron hacia han hasta hay
    las los más mientras muy nos otra otras otro otros para pero poco por porque puede pueden pues qué
    quien según ser sido sin sino sobre son sus también tan tiene tienen todo todos tras una unas uno unos

    ainda além ambos antes aos após através cada com como das dele dela dos ela elas ele eles entre era
    essa esse esta este foi foram isso isto mais mas mesmo muito não nas nos numa onde para pela pelas
    pelo pelos pode podem por porque quando que quem são sem ser seu seus sob sobre sua suas também tem
    têm toda todas todo todos uma

    alla alle allo anche ancora avere ben che chi ciò coi col come con contro cui dagli dai dal dalla
    dalle degli dei del della delle dello dopo dove due essa esse essere esso fra gli hanno loro mentre
    molto negli nei nel nella nelle nello non ogni oltre per perché però più poi prima quale quando quanto
    quella quelle quelli quello questa queste questi questo quindi senza sia solo sono sopra sotto stata
    stato sua sue sui sul sulla sulle suo suoi tra tutte tutti tutto una uno viene vengono

    aan alle als ander andere bij daar dan dat deze die dit door dus een echter elk elke geen had heb
    hebben heeft het hier hij hoe hun kan kunnen maar meer met moet naar niet nog ook omdat onder ons over
    tegen ten tot tussen uit van veel voor waar wanneer want waren was wat werd worden wordt zich zijn zij
    zoals zonder zou

    att alla allt andra bara blir bli både den denna deras dess det detta dock där efter eller ett från
    för genom hade han hans har hon hur här inte kan man med men mer mot mycket många när och också olika
    som sig sin sina sitt ska skulle under upp utan vad var vara varje vid vilka vilken vilket över
    """.split()
)

# "Machine learning is …" begins with one thing, "Chlorophyll absorbs …" with a thing and a verb.
COPULAS = frozenset("is are was were ist sind war waren est sont es son era é são è sono zijn är var".split())
